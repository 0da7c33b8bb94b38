"""The study of the two ways to train: its numbers, and a run to scale that can be taken up again."""

import pytest
import torch
from PIL import Image

from research.train_impl.study import ARMS, percent_difference, read_runs, running_mean, table


def test_running_mean_and_difference():
    losses = [float(step) for step in range(25)]
    assert running_mean(losses) == pytest.approx([9.5, 10.5, 11.5, 12.5, 13.5, 14.5])
    assert running_mean([1.0, 3.0]) == [2.0]
    assert percent_difference([2.0, 4.0], [3.0, 3.0]) == pytest.approx([50, 25])


def test_table_holds_each_arm_against_the_branches():
    runs = {(arm, 0): (90.0 + number, [1.0, 1.0 + number / 2]) for number, arm in enumerate(ARMS)}
    lines = table(runs).splitlines()
    assert '| moments | 0 | 25 % | 50 % | 25 % | 50 % | 91.0 % |' in lines
    assert lines[-3:] == [f'| {arm} | 1 | {top1}.00 | - |' for arm, top1 in zip(ARMS, (90, 91, 92))]


@pytest.mark.slow
def test_tool(tmp_path, run_tool):
    generator = torch.Generator().manual_seed(0)
    for split in ('train', 'val'):
        for name in 'ab':
            folder = tmp_path / 'data' / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = torch.randint(256, (40, 50, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / f'{number}.png')
    arguments = (tmp_path / 'data', tmp_path / 'out', '--steps', 2, '--image-size', 32, '--seeds', 0)
    code, printed = run_tool('research.train_impl', *arguments)
    assert code == 0, printed
    runs = read_runs(tmp_path / 'out' / 'runs.csv')
    assert [arm for arm, _ in runs] == list(ARMS) and all(len(losses) == 2 for _, losses in runs.values())
    # The first forward is the same function of the same images; batch norm of four values magnifies its rounding.
    assert runs['moments', 0][1][0] == pytest.approx(runs['branches', 0][1][0], rel=5e-3)
    code, printed = run_tool('research.train_impl', *arguments)
    assert code == 0 and 'seed 0' not in printed  # finished runs are not repeated
    assert (tmp_path / 'out' / 'losses.png').read_bytes()[:4] == b'\x89PNG'
