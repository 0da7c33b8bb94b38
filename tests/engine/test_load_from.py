"""``load_from`` of a training run: any layout, strictly, for the model and its moving average."""

import random

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, data_options

from mobileone_ext import cli
from mobileone_ext.checkpoints.convert import convert
from mobileone_ext.checkpoints.load import load_weights
from mobileone_ext.recipe.seeding import seed_generators

# Two runners within one second share a name, which mmengine mentions.
pytestmark = pytest.mark.filterwarnings('ignore:.*instance named of:UserWarning')


def runner(digits, work_dir, load_from, options=()):
    from mobileone_ext.engine.runner import Runner

    config = cli.load_config(str(ROOT / TINY), dict(option.split('=') for option in data_options(digits)[:3]))
    in_process = {'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': False}
    config.merge_from_dict({**in_process, **dict(options)})
    config.work_dir, config.load_from = str(work_dir), str(load_from)
    config.experiment_name = str(work_dir)  # by default it is the second, so two runners would share a logger
    return Runner.from_cfg(config)


@pytest.mark.parametrize('layout', ['mmpretrain', 'apple', 'timm'])
@pytest.mark.parametrize('headless', [False, True])
def test_load_from(digits, tiny_run, tmp_path, layout, headless):
    source = tmp_path / 'weights.safetensors'
    convert(tiny_run / 'epoch_4.pth', source, layout, backbone_only=headless)
    run = runner(digits, tmp_path, source)
    run.call_hook('before_run')
    run.load_or_resume()
    ema = next(hook for hook in run.hooks if type(hook).__name__ == 'EMAHook').ema_model.module
    for key, tensor in load_weights(source).state.items():
        assert torch.equal(run.model.state_dict()[key], tensor)
        assert torch.equal(ema.state_dict()[key], tensor)


@pytest.fixture
def edited(tiny_run, tmp_path):
    """Makes a checkpoint of the tiny run with some tensors replaced."""

    def edit(**tensors):
        state = torch.load(tiny_run / 'epoch_4.pth', weights_only=True)['state_dict']
        state.update({key.replace('__', '.'): tensor for key, tensor in tensors.items()})
        torch.save(state, tmp_path / 'edited.pth')
        return tmp_path / 'edited.pth'

    return edit


def test_another_class_count_keeps_the_new_head(digits, edited, tmp_path):
    source = edited(head__fc__weight=torch.zeros(7, 32), head__fc__bias=torch.zeros(7))
    run = runner(digits, tmp_path, source)
    run.call_hook('before_run')
    run.load_or_resume()
    state, stored = run.model.state_dict(), load_weights(source).state
    assert state['head.fc.weight'].shape == (10, 32)
    assert all(torch.equal(state[key], stored[key]) for key in stored if key.startswith('backbone.'))
    (log,) = tmp_path.glob('*/*.log')
    assert 'the head is new, with 10 classes; the file has 7' in log.read_text()


def test_load_from_of_what_does_not_fit(digits, edited, tmp_path):
    key = 'backbone__stage1__0__branch_scale__conv__weight'
    with pytest.raises(ValueError, match='edited.pth'):
        runner(digits, tmp_path, edited(**{key: torch.zeros(8, 1, 3, 3)})).load_or_resume()


@pytest.fixture
def fused(tiny_run, tmp_path):
    """The tiny run's weights, fused, as a file."""
    from mobileone_ext.deploy import fuse

    config = cli.load_config(str(ROOT / TINY))
    model = fuse.fuse(fuse.load_model(config, load_weights(tiny_run / 'epoch_4.pth')))
    torch.save(model.state_dict(), tmp_path / 'fused.pth')
    return tmp_path / 'fused.pth', model


def test_fused_weights_get_branches(digits, fused, tmp_path):
    path, model = fused
    runs = [runner(digits, tmp_path / name, path) for name in 'ab']
    for number, run in enumerate(runs):
        run.call_hook('before_run')
        run.model.load_state_dict(runs[0].model.state_dict())  # two processes of one run
        seed_generators(number)
        run.load_or_resume()
    drawn = torch.rand(1), np.random.rand(), random.random()
    state = runs[0].model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in runs[1].model.state_dict().items())

    seed_generators(1)
    assert drawn == (torch.rand(1), np.random.rand(), random.random())  # as if loading had drawn nothing

    dataset = runs[0].train_dataloader.dataset
    images = model.data_preprocessor(dict(inputs=[dataset[i]['inputs'] for i in range(16)]))['inputs']
    network = runs[0].model
    assert not network.backbone.deploy and network.backbone.stage1[0].branch_scale is not None
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(network.eval()(images), expected, rtol=1e-4, atol=1e-4)
        # By the statistics of a batch, as the first step of training sees it, it is nearly the same.
        network.train()
        apart = (network(images) - expected).abs().mean() / expected.abs().mean()
    assert apart < 0.5
    (log,) = (tmp_path / 'a').glob('*/*.log')
    assert 'fused.pth: MobileOne of widths' in log.read_text()
    assert 'un-fused, with the statistics of 128 training images' in log.read_text()


def test_a_fused_network_takes_fused_weights_as_they_are(digits, fused, tmp_path):
    path, model = fused
    run = runner(digits, tmp_path / 'run', path, {'model.backbone.deploy': True})
    run.call_hook('before_run')
    run.load_or_resume()
    for key, tensor in model.state_dict().items():
        assert torch.equal(run.model.state_dict()[key], tensor)


def test_fused_weights_of_another_network(digits, fused, tmp_path):
    with pytest.raises(ValueError, match='fused.pth: does not fit .* 4 keys missing: backbone.stage2.2.'):
        runner(digits, tmp_path / 'run', fused[0], {'model.backbone.arch.num_blocks': [1, 2, 1, 1]}).load_or_resume()
