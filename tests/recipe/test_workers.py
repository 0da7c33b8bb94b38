"""When a run's loader workers end."""

import multiprocessing

import pytest
from conftest import ROOT, TINY, data_options
from mmengine.hooks import Hook

from mobileone_ext import cli
from mobileone_ext.engine.runner import Runner


class Validates(Hook):
    """Calls ``runner.val`` or ``runner.test`` in the middle of an epoch."""

    def __init__(self, method):
        self.method = method

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if batch_idx == 1 and runner.epoch == 0:
            getattr(runner, self.method)()
            assert multiprocessing.active_children()


@pytest.mark.parametrize('method', ['val', pytest.param('test', marks=pytest.mark.slow)])
def test_a_validation_within_training_leaves_its_workers_alone(digits, tmp_path, method):
    config = cli.load_config(str(ROOT / TINY), dict(option.split('=') for option in data_options(digits)[:3]))
    config.work_dir = str(tmp_path)
    config.train_cfg.max_epochs = 2
    config.train_dataloader.update(num_workers=1, persistent_workers=True)
    config.param_scheduler = []
    runner = Runner.from_cfg(config)
    runner.register_hook(Validates(method))
    runner.train()
    assert runner.iter == 2 * len(runner.train_dataloader)
    assert not multiprocessing.active_children()
