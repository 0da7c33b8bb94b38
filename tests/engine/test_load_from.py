"""``load_from`` of a training run: any layout, strictly, for the model and its moving average."""

import pytest
import torch
from conftest import ROOT, TINY, data_options

from mobileone_ext import cli
from mobileone_ext.checkpoints.convert import convert
from mobileone_ext.checkpoints.load import load_weights

# Two runners within one second share a name, which mmengine mentions.
pytestmark = pytest.mark.filterwarnings('ignore:.*instance named of:UserWarning')


def runner(digits, work_dir, load_from):
    from mobileone_ext.engine.runner import Runner

    config = cli.load_config(str(ROOT / TINY), dict(option.split('=') for option in data_options(digits)[:3]))
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
