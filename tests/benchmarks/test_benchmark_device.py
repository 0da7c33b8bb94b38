"""All that a GPU is asked: its parts fail alone, its table of tiles says what the rows say, and a dry run."""

import sys
from argparse import Namespace

import pytest
import torch
from benchmarks import device, device_kernels
from conftest import only_line


def arguments(tmp_path, **values):
    return Namespace(**dict(amp='bf16', minutes=1, only=device.PARTS, dry_run=True, out=str(tmp_path)) | values)


def test_a_part_that_fails_or_takes_too_long_costs_the_others_nothing(tmp_path, monkeypatch):
    codes = dict(tests='raise SystemExit(3)', tiles='import time; time.sleep(60)')

    def command(part, args):
        return [sys.executable, '-c', codes.get(part, f'print({part!r})')]

    monkeypatch.setattr(device, 'command', command)
    with pytest.raises(ValueError, match='^tests, tiles: see the logs'):
        device.run(arguments(tmp_path, minutes=0.1))
    summary = (tmp_path / 'summary.md').read_text()
    for part in device.PARTS[2:]:
        assert f'| {part} | done |' in summary
        assert (tmp_path / f'{part.replace(" ", "_")}.log').read_text() == f'{part}\n'
    assert '| tests | failed (3) |' in summary and '| tiles | ended after' in summary


def test_the_table_has_the_best_tile_first():
    times = {(128, 32): (1.0, 4.0), (256, 64): (2.0, 2.0), (512, 64): (3.0, None)}
    rows = [
        dict(kernel='plane_sums', channels=48, size=size, tile=tile, block=along, median_ms=both[index])
        for (tile, along), both in times.items()
        for index, size in enumerate((56, 28))
    ]
    lines = [line.strip('| ').split(' | ') for line in device_kernels.best(rows).splitlines()[2:]]
    assert lines == [
        ['128', '32', '1.50', '2.00', '2'],
        ['256', '64', '1.50', '2.00', '2'],
        ['512', '64', '3.00', '3.00', '1'],
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_no_gpu_is_a_line(run_tool):
    code, printed = run_tool('benchmark', 'device')
    assert code != 0 and 'torch finds no GPU here' in only_line(printed)


@pytest.mark.slow
def test_dry_run(run_tool, tmp_path):
    code, printed = run_tool('benchmark', 'device', '--dry-run', '--out', tmp_path)
    assert code == 0, printed
    files = {path.name for path in tmp_path.iterdir()}
    assert {'summary.md', 'tiles.csv', 'tiles.md', 'profile.md', 'steps_of_32', 'steps_of_256'} <= files
