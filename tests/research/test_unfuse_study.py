"""The un-fusing study: its schedule, its table, and a run to scale that can be taken up again."""

import pytest
import torch
from conftest import only_line
from networks import random_state
from PIL import Image

from research.training import lr_factor, read_rows
from research.unfuse.study import ARMS, table


@pytest.mark.parametrize('step, factor', [(0, 1 / 11), (9, 10 / 11), (10, 1.0), (55, 0.5), (100, 0.0)])
def test_learning_rate(step, factor):
    assert lr_factor(step, 100) == pytest.approx(factor)


def test_table():
    rows = [dict(arm='branches', lr='0.003', seed=str(seed), top1=top1) for seed, top1 in enumerate(['90', '91', '92'])]
    rows.append(dict(arm='fused', lr='0.0003', seed='0', top1='80'))
    assert table(rows).splitlines()[2:] == [
        '| fused | 0.0003 | 1 | 80.00 | - | 80.0 |',
        '| branches | 0.003 | 3 | 91.00 | 1.00 | 90.0, 91.0, 92.0 |',
    ]


@pytest.mark.slow
def test_tool(tmp_path, run_tool):
    generator = torch.Generator().manual_seed(0)
    for split, count in (('train', 32), ('val', 2)):
        for name in 'ab':
            folder = tmp_path / 'data' / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(256, (40, 50, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / f'{i}.png')
    state = random_state('s0', 'fused')
    torch.save(state, tmp_path / 'wild.pth')
    arguments = (tmp_path / 'fused.pth', tmp_path / 'data', tmp_path / 'out', '--image-size', 32, '--epochs', 1)
    code, output = run_tool('research.unfuse', tmp_path / 'wild.pth', *arguments[1:], '--seeds', 0)
    assert code == 1 and 'the loss is nan at step 2' in only_line(output)
    tame = {key: 0.2 * value if value.dim() == 4 else value for key, value in state.items()}
    torch.save(tame, tmp_path / 'fused.pth')
    code, output = run_tool('research.unfuse', *arguments, '--seeds', 0)
    assert code == 0, output
    assert 'before training, branches: 0 of 4 predictions differ' in output
    first = read_rows(tmp_path / 'out' / 'runs.csv')
    assert [row['arm'] for row in first] == list(ARMS)
    run_tool('research.unfuse', *arguments, '--seeds', 0, 1, '--arms', 'fused')
    assert read_rows(tmp_path / 'out' / 'runs.csv')[:-1] == first
    assert (tmp_path / 'out' / 'table.md').read_text().startswith('| arm | lr | n |')
