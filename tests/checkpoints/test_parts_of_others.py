"""What a config adds to MobileOne (activations, necks, losses, averages, schedules) is saved and comes back."""

import pytest
import torch
from conftest import TINY, data_options, only_line
from mmengine.model import StochasticWeightAverage
from mmengine.registry import MODELS as ROOTS
from mmengine.registry import PARAM_SCHEDULERS
from mmpretrain.registry import MODELS
from torch.optim.swa_utils import AveragedModel

from mobileone_ext import cli
from mobileone_ext.checkpoints.load import load_weights
from mobileone_ext.deploy.fuse import build_model, fuse, load_model, save_fused
from mobileone_ext.recipe.checkpointing import to_plain, without_functions

PARTS = {
    'PReLU': {'model.backbone.act_cfg': dict(type='PReLU')},
    'GeM': {'model.neck': dict(type='GeneralizedMeanPooling')},
    'SeesawLoss': {'model.head.loss': dict(type='SeesawLoss', num_classes=10)},
    'affine=False': {'model.backbone.norm_cfg': dict(type='BN', affine=False)},
    'two layers': {
        'model.head': dict(type='StackedLinearClsHead', num_classes=10, in_channels=32, mid_channels=[16]),
    },
    'cosine head': {'model.head': dict(type='ArcFaceClsHead', num_classes=10, in_channels=32)},
}


# Of a backbone's kind of features, with a class count and without arguments of their own.
REGISTERED = {
    'model.backbone.act_cfg': (
        'ReLU', 'LeakyReLU', 'PReLU', 'RReLU', 'ReLU6', 'ELU', 'Sigmoid', 'Tanh', 'SiLU', 'Clip', 'GELU',
        'HSigmoid', 'HSwish', 'Swish',
    ),
    'model.head.loss': (
        'AsymmetricLoss', 'CosineSimilarityLoss', 'CrossEntropyLoss', 'FocalLoss', 'SeesawLoss',
    ),
    'model.head': (
        'LinearClsHead', 'VisionTransformerClsHead', 'DeiTClsHead', 'EfficientFormerClsHead', 'ArcFaceClsHead',
        'MultiLabelLinearClsHead', 'VigClsHead',
    ),
}  # fmt: skip


def registered_part(place, kind):
    arguments = dict(num_classes=10, in_channels=32) if place == 'model.head' else {}
    if kind == 'SeesawLoss':
        arguments = dict(num_classes=10)
    return {place: dict(type=kind, **arguments)}


@pytest.fixture(params=PARTS)
def config(request):
    return cli.load_config(TINY, PARTS[request.param])


@pytest.mark.parametrize('place, kind', [(place, kind) for place, kinds in REGISTERED.items() for kind in kinds])
def test_a_registered_part_comes_back(place, kind, tmp_path):
    config = cli.load_config(TINY)
    for key, value in registered_part(place, kind).items():
        *parents, last = key.split('.')
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    check_it_comes_back(config, tmp_path)


def test_a_part_comes_back_branched_and_fused(config, tmp_path):
    check_it_comes_back(config, tmp_path)


def check_it_comes_back(config, tmp_path):
    """Saved and read branched, fused, and read again, it computes the same features; no tensor is lost."""
    torch.manual_seed(0)
    model = build_model(config, 'branched')
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'branched.pth')
    actual = load_model(config, load_weights(tmp_path / 'branched.pth'))
    for key, tensor in model.state_dict().items():
        assert torch.equal(actual.state_dict()[key], tensor), key
    save_fused(fuse(actual), tmp_path / 'fused.pth', config, tmp_path / 'branched.pth', 'state_dict')
    fused = load_model(config, load_weights(tmp_path / 'fused.pth'))
    images = torch.randn(2, 3, 32, 32)
    expected, features = model.eval().extract_feat(images)[-1], fused.eval().extract_feat(images)[-1]
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    for key in [key for key in model.state_dict() if not key.startswith('backbone.')]:
        assert torch.equal(fused.state_dict()[key], model.state_dict()[key]), key


def test_a_network_without_the_part_refuses_it(config, tmp_path):
    torch.save(build_model(config, 'branched').state_dict(), tmp_path / 'part.pth')
    with pytest.raises(ValueError, match='part.pth'):
        load_weights(tmp_path / 'part.pth').load_into(build_model(cli.load_config(TINY), 'branched'))


def test_other_layouts_have_no_name_for_a_part(tmp_path, run_tool):
    config = cli.load_config(TINY, PARTS['GeM'])
    torch.save(build_model(config, 'branched').state_dict(), tmp_path / 'part.pth')
    code, text = run_tool('convert_checkpoint', tmp_path / 'part.pth', tmp_path / 'timm.pth', '--to', 'timm')
    assert code == 1 and 'neck.p' in only_line(text)


@pytest.mark.parametrize('average', [AveragedModel, StochasticWeightAverage])
def test_an_average_alone_is_read(average, tmp_path):
    config = cli.load_config(TINY)
    model = build_model(config, 'branched')
    torch.save(average(model).state_dict(), tmp_path / 'average.pth')
    weights = load_weights(tmp_path / 'average.pth', 'on')
    assert weights.source == 'the file itself (EMA)'
    weights.load_into(model)
    with pytest.raises(ValueError, match='averaged'):
        load_weights(tmp_path / 'average.pth', 'off')


SCHEDULERS = {  # arguments of those that need some
    'ConstantLR': dict(factor=0.5),
    'CosineAnnealing': dict(T_max=4),
    'CosineRestart': dict(periods=[2, 2], restart_weights=[1, 1], eta_min=0),
    'Exponential': dict(gamma=0.5),
    'Linear': dict(start_factor=0.5, end=3),
    'MultiStep': dict(milestones=[1, 3], gamma=0.5),
    'OneCycle': dict(eta_max=0.5, total_steps=9),
    'Poly': dict(end=5),
    'ReduceOnPlateau': dict(monitor='loss', rule='less', threshold_rule='rel'),
    'Step': dict(step_size=2),
}


def test_every_scheduler_saves_and_loads(tmp_path):
    tried = set()
    for name, cls in PARAM_SCHEDULERS.module_dict.items():
        options = next((value for prefix, value in SCHEDULERS.items() if name.startswith(prefix)), {})
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        named = dict(param_name='lr') if name.endswith('ParamScheduler') else {}

        def make(cls=cls, optimizer=optimizer, options=options, named=named):
            return cls(optimizer, **options, **named, by_epoch=True)

        if name == 'ConstantParamScheduler':
            named['factor'] = 0.5
        scheduler = make()
        optimizer.step()
        scheduler.step(*([dict(loss=1.0)] if name.startswith('ReduceOnPlateau') else []))
        torch.save(to_plain(without_functions([scheduler.state_dict()])), tmp_path / 'state.pth')
        (state,) = torch.load(tmp_path / 'state.pth', weights_only=True)
        again = make()
        again.load_state_dict(state)
        assert again.last_step == scheduler.last_step, name
        again.step(*([dict(loss=1.0)] if name.startswith('ReduceOnPlateau') else []))
        tried.add(name)
    assert len(tried) > 25


def test_what_a_checkpoint_cannot_hold_is_refused_before_the_first_step(digits, run_tool, tmp_path, monkeypatch):
    from mmengine.registry import HOOKS

    class Unsavable(HOOKS.get('IterTimerHook')):
        def before_save_checkpoint(self, runner, checkpoint):
            checkpoint['optimizer']['trace'] = lambda: None

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            raise AssertionError('a step was taken')

    monkeypatch.setitem(HOOKS.module_dict, 'Unsavable', Unsavable)
    options = [*data_options(digits), 'default_hooks.timer.type=Unsavable']
    for extra in ((), ('--dry-run',)):
        code, text = run_tool('train', TINY, *extra, '--work-dir', tmp_path, '--cfg-options', *options)
        assert code == 1 and 'could not be saved and read back' in only_line(text), text


def test_parts_are_all_registered():
    for name in ('PReLU', 'GeneralizedMeanPooling', 'SeesawLoss', 'StackedLinearClsHead'):
        assert MODELS.get(name) or ROOTS.get(name), name
