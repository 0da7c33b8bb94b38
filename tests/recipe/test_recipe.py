"""Parameter groups, and checkpoints made plain."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn
from torch.utils.data import DataLoader

from mobileone_ext.backbone import MobileOne
from mobileone_ext.files import write_text
from mobileone_ext.recipe.checkpointing import AtomicBackend, PlainCheckpointHook, restore_history, to_plain
from mobileone_ext.recipe.freeze_norm import FreezeNormHook
from mobileone_ext.recipe.param_groups import merge_groups


def test_groups_with_equal_options_merge_in_order():
    a, b, c, d = (nn.Parameter(torch.zeros(1)) for _ in range(4))
    groups = [dict(params=[a], lr=1.0), dict(params=[b], lr=1.0, weight_decay=0.0), dict(params=[c], lr=1.0)]
    assert merge_groups([*groups, dict(params=[d], lr=2.0)]) == [
        dict(params=[a, c], lr=1.0),
        dict(params=[b], lr=1.0, weight_decay=0.0),
        dict(params=[d], lr=2.0),
    ]


@pytest.mark.parametrize('epoch, first_frozen', [(0, 0), (3, 3), (0.8, 4), (9, 5)])
def test_norms_freeze_from_their_epoch_on(epoch, first_frozen):
    hook = FreezeNormHook(epoch)
    frozen = []
    for number in range(5):
        model = SimpleNamespace(backbone=MobileOne('mu0'))  # a new one each epoch, as after a resume
        hook.before_train_epoch(SimpleNamespace(epoch=number, max_epochs=5, model=model))
        norms = [m for m in model.backbone.train().modules() if isinstance(m, nn.BatchNorm2d)]
        frozen.append(not any(norm.training for norm in norms))
    assert frozen == [number >= first_frozen for number in range(5)]


@pytest.mark.parametrize('epoch', [-1, 1.0])
def test_norms_never_frozen_are_refused(epoch):
    with pytest.raises(ValueError, match=f'epoch={epoch}'):
        FreezeNormHook(epoch)


def test_plain_values_survive_safe_reading(tmp_path):
    value = dict(
        best=np.float64(0.5),
        count=np.int64(3),
        names=('a', 'b'),
        nested=[dict(array=np.arange(3)), None, True, 'text', 2.5],
        loss=HistoryBuffer([1.0, 2.0], [1, 1], max_length=7),
    )
    torch.save(to_plain(value), tmp_path / 'plain.pth')
    actual = torch.load(tmp_path / 'plain.pth', weights_only=True)
    assert actual['best'] == 0.5 and actual['count'] == 3 and actual['names'] == ('a', 'b')
    assert actual['nested'][0]['array'].tolist() == [0, 1, 2] and actual['nested'][1:] == [None, True, 'text', 2.5]
    buffer = restore_history(actual['loss'])
    assert buffer.data[0].tolist() == [1.0, 2.0] and buffer.max_length == 7 and buffer.mean() == 1.5


def test_curves_are_curves_again_after_resuming(tmp_path):
    hook, loss = PlainCheckpointHook(), HistoryBuffer([1.0, 2.0], [1, 1])
    checkpoint = dict(message_hub=dict(log_scalars={'train/loss': loss}), meta={}, state_dict={})
    loader = DataLoader([0, 1, 2], batch_size=2)
    hook.before_save_checkpoint(SimpleNamespace(train_dataloader=loader, train_loop=None), checkpoint)
    assert checkpoint['meta']['run'] == dict(batch_size=2, world_size=1)
    torch.save(checkpoint, tmp_path / 'plain.pth')
    actual = torch.load(tmp_path / 'plain.pth', weights_only=True)
    hook.after_load_checkpoint(None, actual)
    restored = actual['message_hub']['log_scalars']['train/loss']
    assert isinstance(restored, HistoryBuffer) and restored.data[0].tolist() == [1.0, 2.0]


def test_values_without_plain_form_are_named():
    with pytest.raises(ValueError, match='cannot hold a function'):
        to_plain(dict(hook=write_text))


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'epoch_1.pth'
    AtomicBackend().put(b'old', path)
    with pytest.raises(TypeError):
        AtomicBackend().put('not bytes', path)
    monkeypatch.setattr('os.replace', lambda *_: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'):
        write_text('new', path)
    assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_not_overwritten(tmp_path):
    with pytest.raises(IsADirectoryError, match='is a folder'):
        write_text('text', tmp_path)
