"""``load_from`` of a training run: any layout, strictly, for the model and its moving average."""

import pytest
import torch
from conftest import ROOT, TINY, data_options

from mobileone_ext import cli
from mobileone_ext.checkpoints import load_weights
from mobileone_ext.convert_checkpoint import convert

# Two runners within one second share a name, which mmengine mentions.
pytestmark = pytest.mark.filterwarnings('ignore:.*instance named of:UserWarning')


def runner(digits, work_dir, load_from):
    from mobileone_ext.runner import Runner

    config = cli.load_config(str(ROOT / TINY), dict(option.split('=') for option in data_options(digits)[:3]))
    config.work_dir, config.load_from = str(work_dir), str(load_from)
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


def test_load_from_of_what_does_not_fit(digits, tiny_run, tmp_path):
    state = torch.load(tiny_run / 'epoch_4.pth', weights_only=True)['state_dict']
    state['head.fc.weight'], state['head.fc.bias'] = torch.zeros(7, 32), torch.zeros(7)
    torch.save(state, tmp_path / 'seven.pth')
    with pytest.raises(ValueError, match='seven.pth: another head: .* 7 classes; the config builds .* 10 classes'):
        runner(digits, tmp_path, tmp_path / 'seven.pth').load_or_resume()
