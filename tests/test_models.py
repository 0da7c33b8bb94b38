"""The network for people who write Python: against the registered one, against timm's, in a fresh interpreter."""

import subprocess
import sys

import pytest
import timm
import torch
from networks import random_state

import mobileone_ext as m1
from mobileone_ext.backbone import MobileOne
from mobileone_ext.checkpoints.load import load_weights, to_layout


@pytest.fixture(scope='module')
def s0(tmp_path_factory):
    """A file of a random S0 with branches, and its state."""
    path = tmp_path_factory.mktemp('s0') / 's0.pth'
    torch.save(dict(state_dict=random_state('s0', 'branched'), meta={}), path)
    return path


def test_a_fresh_interpreter_loads_torch_at_first_use_and_no_openmmlab():
    code = """
import sys, mobileone_ext as m1
print('torch' in sys.modules)
m1.fuse, m1.prepare, m1.create_model('mobileone_mu0', num_classes=3)
print(*{name.partition('.')[0] for name in sys.modules} & {'torch', 'mmengine', 'mmcv', 'mmpretrain', 'timm'})
print('torch._dynamo' in sys.modules)
"""
    lines = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines == ['False', 'torch', 'False']


def test_a_seed_gives_the_weights_of_the_registered_backbone():
    torch.manual_seed(2206)
    registered = MobileOne('mu0')
    registered.init_weights()
    torch.manual_seed(2206)
    model = m1.create_model('mobileone_mu0', num_classes=3)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    for key, tensor in registered.state_dict().items():
        assert torch.equal(model.state_dict()[f'backbone.{key}'], tensor), key


@pytest.mark.parametrize('form', ['branched', 'fused'])
def test_weights_of_a_file_give_the_logits_and_maps_of_timm(form, tmp_path):
    state, path = random_state('s4', form), tmp_path / 's4.pth'
    torch.save(to_layout(state, 'apple'), path)
    images = torch.randn(2, 3, 64, 96)
    model = m1.create_model('mobileone_s4', weights=path).eval()
    encoder = m1.create_model('mobileone_s4', weights=path, features_only=True, out_indices=(4, -4)).eval()
    reference = timm.create_model('mobileone_s4').eval()
    reference.load_state_dict(to_layout(random_state('s4', 'branched'), 'timm'))
    with torch.no_grad():
        expected = reference(images)
        torch.testing.assert_close(model(images), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        maps = reference.forward_intermediates(images, indices=[1, 4], intermediates_only=True)
        for found, wanted in zip(encoder(images), maps, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    expected_info = [{key: info[key] for key in ('num_chs', 'reduction')} for info in reference.feature_info]
    assert [{key: info[key] for key in ('num_chs', 'reduction')} for info in model.feature_info] == expected_info
    assert encoder.feature_info.channels() == [192, 2048] and encoder.feature_info.reduction() == [4, 32]
    assert encoder.get_submodule(encoder.feature_info[0]['module']) is encoder.backbone.stage1


def test_a_head_of_another_number_is_new_and_none_gives_the_mean(s0):
    images = torch.randn(1, 3, 64, 64)
    torch.manual_seed(0)
    model, whole = (
        m1.create_model('mobileone_s0', weights=s0, num_classes=7).eval(),
        m1.create_model('mobileone_s0', s0),
    )
    embedding = m1.create_model('mobileone_s0', weights=s0, num_classes=0).eval()
    torch.testing.assert_close(embedding(images), model.backbone(images)[-1].mean((2, 3)))
    assert model(images).shape == (1, 7) and model.head.fc.weight.std() < 0.02
    assert torch.equal(whole.head.fc.weight, random_state('s0', 'branched')['head.fc.weight'])
    torch.testing.assert_close(model.backbone.state_dict(), whole.backbone.state_dict(), rtol=0, atol=0)


def test_what_is_saved_is_a_checkpoint_of_ours(tmp_path):
    model = m1.create_model('mobileone_s0', num_classes=3, in_chans=1)
    torch.save(model.state_dict(), tmp_path / 'net.pth')
    weights = load_weights(tmp_path / 'net.pth')
    assert str(weights.structure) == 'MobileOne-s0, branched (k = 4), 3 classes' and weights.structure.in_channels == 1
    assert len(m1.create_model('mobileone_s0', tmp_path / 'net.pth', 3, in_chans=1).state_dict()) == 1323


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(name='mobileone_s9'), "'mobileone_s9': unknown; known are .*mobileone_s0"),
        (dict(name='s0'), "'s0': unknown"),
        (dict(name='mobileone_s1', weights='S0'), 'another network: it holds MobileOne-s0.*builds MobileOne-s1'),
        (dict(name='mobileone_s0', weights='S0', in_chans=1), 'wrong shape: backbone.stage0'),
        (dict(name='mobileone_s0', weights='absent.pth'), 'absent.pth: no such run or file'),
        (dict(name='mobileone_s0', num_classes=-1), 'num_classes=-1: allowed is an integer, 0 or more'),
        (dict(name='mobileone_s0', features_only=True, out_indices=(5,)), 'out_indices=5: allowed'),
    ],
)
def test_a_bad_argument_is_named(options, message, s0):
    given = {key: s0 if value == 'S0' else value for key, value in options.items()}
    with pytest.raises((ValueError, OSError), match=message):
        m1.create_model(**given)


def test_the_door_has_what_it_lists_and_refuses_the_rest():
    assert all(callable(getattr(m1, name)) for name in m1.__all__)
    assert set(m1.__all__) <= set(dir(m1))
    with pytest.raises(AttributeError, match="module 'mobileone_ext' has no attribute 'fusee'"):
        m1.fusee  # noqa: B018
