"""Several runs in one process and one second."""

import time

from conftest import ROOT, TINY, data_options

from mobileone_ext import cli
from mobileone_ext.engine.runner import Runner


def test_each_writes_to_its_own_files(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(time, 'time', lambda: 1_800_000_000.0)  # what mmengine names loggers by
    folders = [tmp_path / name for name in 'ab']
    for folder in folders:
        config = cli.load_config(str(ROOT / TINY), dict(option.split('=') for option in data_options(digits)[:3]))
        config.work_dir = str(folder)
        runner = Runner.from_cfg(config)
        runner.logger.info(f'this is {folder.name}')
        assert not list(folder.rglob('vis_data')), 'TensorBoard would show a run of which there is nothing to see'
        runner.visualizer.add_scalar('a', 1)
    for folder in folders:
        (log,) = folder.rglob('*.log')
        lines = [line for line in log.read_text().splitlines() if 'this is' in line]
        assert len(lines) == 1 and lines[0].endswith(f'this is {folder.name}')
        assert next(folder.rglob('vis_data')).is_relative_to(folder)
