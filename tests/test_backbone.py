"""The backbone against mmpretrain's own, against published counts, and in its modes."""

import copy
import re
from collections import OrderedDict

import pytest
import torch
from conftest import randomize_norms
from mmengine.config import Config
from mmengine.runner.checkpoint import load_state_dict
from mmpretrain.models import MobileOne as MmpretrainMobileOne
from torch import nn

from mobileone_ext.backbone import MobileOne
from mobileone_ext.cli import load_config
from mobileone_ext.deploy.cost import count_multiply_adds, count_parameters
from mobileone_ext.deploy.fuse import build_model

PUBLISHED = ['s0', 's1', 's2', 's3', 's4']
# mmpretrain's metafile: fused, 1000 classes, 224 px.
FUSED_COUNTS = {
    's0': (2_078_504, 274_136_576),
    's1': (4_764_840, 823_839_744),
    's2': (7_808_168, 1_296_478_848),
    's3': (10_078_312, 1_893_842_944),
    's4': (14_838_352, 2_979_222_528),
}
SMALL = dict(num_blocks=[1, 2, 2, 1], width_factor=[0.125] * 4, num_conv_branches=[2] * 4, num_se_blocks=[0, 0, 1, 1])


def small(**options):
    return MobileOne(**{'arch': SMALL, 'se_cfg': dict(ratio=2, divisor=1), **options})


# s0 has several branches, s4 squeezes.
@pytest.mark.parametrize(
    'arch', [pytest.param(arch, marks=[pytest.mark.slow] * (arch not in ('s0', 's4'))) for arch in PUBLISHED]
)
def test_branches_equal_mmpretrain_and_fuse_exactly(arch):
    torch.manual_seed(0)
    ours = randomize_norms(MobileOne(arch)).double().eval()
    reference = MmpretrainMobileOne(arch).double()
    reference.load_state_dict(ours.state_dict())
    reference.eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = reference(x)[0]
        torch.testing.assert_close(ours(x)[0], expected, rtol=1e-12, atol=0)
        single = copy.deepcopy(ours).float()
        single_expected = single(x.float())[0]
        for model in (ours, single):
            model.switch_to_deploy()
        difference = ours(x)[0] - expected
        single_difference = single(x.float())[0] - single_expected
    assert difference.abs().max() <= 1e-10 * expected.abs().max()
    assert single_difference.abs().max() <= 1e-5 * single_expected.abs().max()


@pytest.mark.parametrize('variant', PUBLISHED)
def test_fused_parameters_and_multiply_adds_are_the_published(variant):
    model = build_model(load_config(f'configs/mobileone_{variant}_8xb32.py'), 'fused')
    assert (count_parameters(model), count_multiply_adds(model, 224)) == FUSED_COUNTS[variant]


@pytest.mark.parametrize(('arch', 'branched', 'fused'), [('s0', 1323, 88), ('s4', 610, 136)])
def test_number_of_keys_is_the_published(arch, branched, fused):
    head = 2
    assert len(MobileOne(arch).state_dict()) + head == branched
    assert len(MobileOne(arch, deploy=True).state_dict()) + head == fused


@pytest.mark.parametrize('deploy', [False, True])
def test_all_stages_come_out(deploy):
    maps = MobileOne('s0', out_indices=(0, 1, 2, 3), deploy=deploy)(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 48, 16, 24), (1, 128, 8, 12), (1, 256, 4, 6), (1, 1024, 2, 3)]


def test_negative_out_indices_count_from_the_end():
    assert MobileOne('s0', out_indices=-1).out_indices == (3,)
    assert small(out_indices=(-4, 3)).out_indices == (0, 3)


@pytest.mark.parametrize('frozen_stages', range(-1, 5))
def test_frozen_stages_neither_learn_nor_update_statistics(frozen_stages):
    model = small(frozen_stages=frozen_stages).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad] or [torch.zeros(1)], lr=0.1)
    out = model(torch.randn(4, 3, 64, 64))[0]
    if out.requires_grad:
        out.square().mean().backward()
        optimizer.step()
    changed = {key.split('.')[0] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f'stage{i}' for i in range(frozen_stages + 1, 5)}


def test_norm_eval_keeps_statistics_and_trains_weights():
    model = small(norm_eval=True).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert model.training and norms and not any(norm.training for norm in norms)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_train_and_eval_return_the_model():
    model = small()
    assert model.eval() is model and model.train() is model and not model.eval().training


@pytest.mark.parametrize('norm_cfg', [dict(type='BN'), dict(type='SyncBN')])
def test_switch_to_deploy_keeps_outputs_and_trainability(norm_cfg):
    model = randomize_norms(small(norm_cfg=norm_cfg, frozen_stages=1)).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = model(x)[0].detach()
    model.switch_to_deploy()
    model.switch_to_deploy()  # a second call does nothing
    torch.testing.assert_close(model(x)[0].detach(), expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
    trainable = {name.split('.')[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {'stage2', 'stage3', 'stage4'}
    assert small(deploy=True).state_dict().keys() == model.state_dict().keys()


def test_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    plain, saving = small(), small(with_cp=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 64, 64)
    for model in (plain, saving):
        model.train()(x)[0].square().mean().backward()
    for expected, found in zip(plain.parameters(), saving.parameters()):
        torch.testing.assert_close(found.grad, expected.grad)
    torch.testing.assert_close(plain.state_dict(), saving.state_dict())


def test_branches_of_each_stage_are_set_by_number():
    model = small(num_conv_branches=[1, 2, 3, 4])
    assert [len(getattr(model, f'stage{i}')[0].branch_conv_list) for i in range(1, 5)] == [1, 2, 3, 4]
    assert len(model.stage0.branch_conv_list) == 1


def arch(**change):
    return dict(arch=dict(SMALL, **change))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='s9'), "arch='s9': unknown; known are .*s0, s1"),
        (dict(arch=[4, 6, 16, 1]), r'arch=\[4, 6, 16, 1\]: '),
        (dict(arch=dict(num_blocks=[1] * 4)), "arch=.*'width_factor'"),
        (arch(widths=[1] * 4), "arch=.*'widths'"),
        (arch(num_blocks=[1, 1]), r'num_blocks=\[1, 1\]: allowed'),
        (arch(num_blocks=[1, 1, 1, 0]), r'num_blocks=\[1, 1, 1, 0\]: allowed'),
        (arch(num_blocks=[1.0, 1, 1, 1]), "arch=.*'float' object"),
        (arch(num_conv_branches=[-1, 1, 1, 1]), r'num_conv_branches=\[-1, 1, 1, 1\]: allowed'),
        (arch(num_se_blocks=[9, 0, 0, 0]), r'num_se_blocks=\[9, 0, 0, 0\] of num_blocks'),
        (arch(width_factor=[float('nan'), 1, 1, 1]), 'width_factor=.*: allowed'),
        (arch(width_factor=[float('inf'), 1, 1, 1]), 'width_factor=.*: allowed'),
        (arch(width_factor=['1', 1, 1, 1]), "arch=.*'str'"),
        (arch(width_factor=[0.001] * 4), 'channels=0'),
        *((dict(in_channels=value), f'in_channels={value!r}') for value in (0, 3.0, True)),
        *((dict(out_indices=value), f'out_indices={re.escape(repr(value))}: ') for value in (4, '3', (), [3, -1])),
        *((dict(num_conv_branches=value), f'num_conv_branches={value!r}: ') for value in (1.0, '1')),
        (dict(num_conv_branches=-1), 'ConvBN: count=-1'),
        (dict(num_conv_branches=[1, 2]), r'num_conv_branches=\[1, 2\]: '),
        *(
            ({name: 'no'}, f"{name}='no': allowed are True and False")
            for name in ('use_scale', 'use_skip', 'norm_eval', 'deploy', 'with_cp')
        ),
        *((dict(frozen_stages=value), f'frozen_stages={value!r}') for value in (-2, 5, 1.0)),
        (dict(act_cfg=dict(type='ReLU', slope='x')), r"act_cfg=\{'type': 'ReLU', 'slope': 'x'\}: .*slope"),
        (dict(norm_cfg=dict(type='Nothing')), r"norm_cfg=\{'type': 'Nothing'\}: "),
        (dict(norm_cfg=dict(type='IN')), 'norm_cfg=.*InstanceNorm2d cannot be fused'),
        (dict(norm_cfg=dict(type='BN', track_running_stats=False)), 'norm_cfg=.*BatchNorm2d cannot be fused'),
        (dict(norm_cfg=dict(type='GN')), 'AssertionError'),  # which has no words
        *((dict(se_cfg=value), f'se_cfg={re.escape(repr(value))}: ') for value in (16, dict(ratios=16))),
        (dict(train_impl='fast'), "train_impl='fast'"),
    ],
    ids=str,
)
def test_bad_values_are_named(options, message):
    with pytest.raises(ValueError, match=message) as error:
        small(**options)
    assert '\n' not in str(error.value)


def test_channels_of_image_and_last_stage():
    assert (MobileOne('s1', in_channels=1).in_channels, MobileOne('s1').out_channels) == (1, 1280)


def test_frozen_norms_leave_all_fused_kernels_trainable():
    model = small(norm_cfg=dict(type='BN', requires_grad=False))
    model.switch_to_deploy()
    kernels = [p.requires_grad for name, p in model.named_parameters() if 'branch_reparam' in name]
    assert len(kernels) == 2 * 13 and all(kernels)


def test_what_cannot_be_fused_is_named_and_nothing_is_half_done():
    model = small()
    model.stage3[1].branch_conv_list[0].conv.register_forward_hook(lambda module, inputs, out: 2 * out)
    before = [*model.state_dict()]
    with pytest.raises(ValueError, match=r'stage3\.1: cannot be fused, branch_conv_list\.0: conv has hooks'):
        model.switch_to_deploy()
    assert [*model.state_dict()] == before and not model.deploy


def torchs_loader(model, state):
    model.load_state_dict(state, strict=False)


LOADERS = {'torch': torchs_loader, 'mmengine': load_state_dict}


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
@pytest.mark.parametrize('load', LOADERS.values(), ids=LOADERS)
def test_fused_weights_for_a_network_with_branches_are_refused(load, prefix):
    """Loaders that are not strict would leave it with random branches."""
    fused, model = small(), small()
    fused.switch_to_deploy()
    before = copy.deepcopy(model.state_dict())
    whole = nn.Sequential(OrderedDict(backbone=model)) if prefix else model
    with pytest.raises(ValueError, match=r'of branch_reparam, .*deploy=True for fused weights.*tools/reparam\.py'):
        load(whole, {prefix + key: value for key, value in fused.state_dict().items()})
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize('load', LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize(
    ('own', 'given'),
    [
        (dict(deploy=True), {}),
        (dict(num_conv_branches=4), dict(num_conv_branches=1)),
        (dict(num_conv_branches=1), dict(num_conv_branches=4)),
        ({}, dict(use_scale=False)),
        (dict(use_skip=False), {}),
    ],
    ids=str,
)
def test_weights_of_other_branches_are_refused(load, own, given):
    model = small(**own)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r'stage\d.*: the weights are of branch_.*, the network has branch_'):
        load(model, small(**given).state_dict())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize('load', LOADERS.values(), ids=LOADERS)
def test_half_fused_weights_are_refused(load):
    state = small().state_dict()
    fused = small()
    fused.switch_to_deploy()
    state = {key: value for key, value in state.items() if not key.startswith('stage2.')}
    state.update({key: value for key, value in fused.state_dict().items() if key.startswith('stage2.')})
    with pytest.raises(ValueError, match=r'stage2\..*: the weights are of branch_reparam'):
        load(small(), state)


@pytest.mark.parametrize('load', LOADERS.values(), ids=LOADERS)
def test_parts_of_the_right_form_load(load):
    """What is not there at all, as a stage, a head or buffers, is the loader's to report."""
    source, model = randomize_norms(small()), small()
    load(model, {key: value for key, value in source.state_dict().items() if key.startswith('stage1.')})
    torch.testing.assert_close(model.stage1.state_dict(), source.stage1.state_dict())
    load(model, {})
    model.switch_to_deploy()
    source.switch_to_deploy()
    load(model, source.state_dict())
    torch.testing.assert_close(model.state_dict(), source.state_dict())


CLASSIFIER = dict(
    type='mmpretrain.ImageClassifier',
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(type='mmpretrain.LinearClsHead', num_classes=4, in_channels=64),
)


def through_get_model(config, file):
    from mmpretrain import get_model

    return get_model(config, pretrained=file)


def through_inferencer(config, file):
    from mmpretrain import ImageClassificationInferencer

    return ImageClassificationInferencer(config, pretrained=file, device='cpu').model


def through_load_checkpoint(config, file):
    from mmengine.runner import load_checkpoint
    from mmpretrain import get_model

    model = get_model(config)
    load_checkpoint(model, file)
    return model


@pytest.mark.parametrize('open_model', [through_get_model, through_inferencer, through_load_checkpoint])
def test_fused_weights_open_with_deploy_and_else_say_so(open_model, tmp_path):
    from networks import classifier

    options = dict(se_cfg=dict(ratio=2, divisor=1))
    source = classifier(SMALL, 4, **options)
    expected = source(torch.ones(1, 3, 64, 64))
    source.backbone.switch_to_deploy()
    file = str(tmp_path / 'fused.pth')
    torch.save(dict(state_dict=source.state_dict(), meta={}), file)
    backbone = dict(type='mobileone_ext.MobileOne', arch=SMALL, **options)
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    data = dict(test_dataloader=dict(dataset=dict(type='CustomDataset', pipeline=pipeline)), default_scope='mmpretrain')

    def opened(**more):
        return open_model(
            Config(copy.deepcopy(dict(model=dict(CLASSIFIER, backbone=dict(backbone, **more)), **data))), file
        )

    with pytest.raises(ValueError, match='deploy=True for fused weights'):
        opened()
    model = opened(deploy=True)
    torch.testing.assert_close(model.eval()(torch.ones(1, 3, 64, 64)), expected, rtol=1e-4, atol=1e-5)
