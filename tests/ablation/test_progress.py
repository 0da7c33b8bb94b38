"""What a checkpoint remembers of its run's time and validations."""

import pytest
import torch
from mmengine.config import Config

from mobileone_ext.ablation import progress


def history(*values):
    return dict(history_buffer=torch.tensor(values, dtype=torch.float64), counts=torch.ones(len(values)), max_length=10)


@pytest.fixture
def remembering(monkeypatch):
    def read(steps_per_epoch, **scalars):
        run = dict(batch_size=2) if steps_per_epoch is None else dict(batch_size=2, steps_per_epoch=steps_per_epoch)
        saved = dict(meta=dict(run=run), message_hub=dict(log_scalars=scalars))
        monkeypatch.setattr(progress, 'read_training_checkpoint', lambda path: saved)

    return read


def test_minutes_are_those_of_all_steps(remembering):
    remembering(2, **{'train/time': history(30.0, 60.0, 90.0)})
    assert progress.training_minutes('epoch_1.pth') == 3.0
    remembering(2)
    assert progress.training_minutes('epoch_1.pth') is None


@pytest.mark.parametrize('steps_per_epoch, interval', [(2, 1), (1, 2), (None, 2)])
def test_a_validation_is_placed_after_the_steps_before_it(remembering, steps_per_epoch, interval):
    seconds = history(60.0, 120.0, 60.0, 60.0)
    remembering(steps_per_epoch, **{'train/time': seconds, 'val/accuracy/top1': history(20.0, 45.0)})
    config = Config(dict(train_cfg=dict(val_interval=interval)))
    assert progress.validations('x.pth', config) == [(3.0, 20.0), (5.0, 45.0)]
