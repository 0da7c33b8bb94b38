"""Reading: layouts, wrappers, averaged weights, damaged and hostile files, strict loading."""

from collections import OrderedDict

import pytest
import torch
from conftest import randomize_norms
from hostile import Bomb
from networks import classifier
from safetensors.torch import save_file
from torch import nn

from mobileone_ext.checkpoints.load import load_weights, read_checkpoint, to_layout

# s0 to scale: every kind of branch, SE in stage 3, a second block in stage 2.
TINY = dict(
    num_blocks=[1, 2, 1, 1], width_factor=[0.125] * 4, num_conv_branches=[2, 1, 2, 1], num_se_blocks=[0, 0, 1, 0]
)
LAYOUTS = ('mmpretrain', 'apple', 'timm')
FORMS = ('branched', 'fused')


def tiny(form='branched', num_classes=4, seed=0):
    torch.manual_seed(seed)
    model = randomize_norms(classifier(TINY, num_classes))
    if form == 'fused':
        model.backbone.switch_to_deploy()
    return model


@pytest.fixture
def state():
    return tiny().state_dict()


def save(tmp_path, content):
    path = tmp_path / 'file.pth'
    torch.save(content, path)
    return path


def equal(a, b):
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.mark.parametrize(
    'names',
    [
        (
            'backbone.stage0.branch_conv_list.0.conv.weight',
            'stage0.rbr_conv.0.conv.weight',
            'stem.conv_kxk.0.conv.weight',
        ),
        (
            'backbone.stage1.0.branch_scale.norm.running_var',
            'stage1.0.rbr_scale.bn.running_var',
            'stages.0.0.conv_scale.bn.running_var',
        ),
        (
            'backbone.stage2.3.branch_scale.conv.weight',
            'stage2.3.rbr_scale.conv.weight',
            'stages.1.3.conv_scale.conv.weight',
        ),
        ('backbone.stage3.19.branch_norm.bias', 'stage3.19.rbr_skip.bias', 'stages.2.19.identity.bias'),
        (
            'backbone.stage3.10.branch_conv_list.3.norm.num_batches_tracked',
            'stage3.10.rbr_conv.3.bn.num_batches_tracked',
            'stages.2.10.conv_kxk.3.bn.num_batches_tracked',
        ),
        ('backbone.stage4.0.se.conv1.conv.weight', 'stage4.0.se.reduce.weight', 'stages.3.0.attn.fc1.weight'),
        ('backbone.stage4.1.se.conv2.conv.bias', 'stage4.1.se.expand.bias', 'stages.3.1.attn.fc2.bias'),
        ('backbone.stage4.1.branch_reparam.weight', 'stage4.1.reparam_conv.weight', 'stages.3.1.reparam_conv.weight'),
        ('backbone.stage0.branch_reparam.bias', 'stage0.reparam_conv.bias', 'stem.reparam_conv.bias'),
        ('head.fc.weight', 'linear.weight', 'head.fc.weight'),
    ],
)
def test_names(names):
    for layout, name in zip(LAYOUTS, names):
        assert list(to_layout({names[0]: torch.zeros(1)}, layout)) == [name]


@pytest.mark.parametrize(
    'variant, form, count',
    [('s0', 'branched', 1323), ('s0', 'fused', 88), ('s4', 'branched', 610), ('s4', 'fused', 136)],
)
def test_number_of_keys(tmp_path, variant, form, count):
    model = classifier(variant, deploy=form == 'fused')
    weights = load_weights(save(tmp_path, model.state_dict()))
    assert (len(weights.state), weights.form, weights.structure.variant) == (count, form, variant)
    assert list(weights.state) == list(model.state_dict())


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_layout_and_form_are_found_out(tmp_path, layout, form):
    state = tiny(form).state_dict()
    weights = load_weights(save(tmp_path, to_layout(state, layout)))
    assert (weights.layout, weights.form, weights.num_classes) == (layout, form, 4)
    assert equal(weights.state, state)


def prefixed(state, prefix):
    return {prefix + key: tensor for key, tensor in state.items()}


@pytest.mark.parametrize(
    'wrap, source',
    [
        (lambda state: state, 'the file itself'),
        (lambda state: OrderedDict(reversed(list(state.items()))), 'the file itself'),
        (lambda state: prefixed(state, 'module.'), 'the file itself'),
        (lambda state: prefixed(state, '_orig_mod.module.'), 'the file itself'),
        (lambda state: {'state_dict': state, 'meta': {'epoch': 3}, 'optimizer': {}}, 'state_dict'),
        (lambda state: {'model': to_layout(state, 'timm'), 'epoch': 3}, 'model'),
        (lambda state: {'model_state_dict': prefixed(to_layout(state, 'apple'), 'module.')}, 'model_state_dict'),
        (lambda state: {'ema_state_dict': prefixed(state, 'module.')}, 'ema_state_dict (EMA)'),
        (lambda state: {key: nn.Parameter(t, False) for key, t in state.items()}, 'the file itself'),
    ],
)  # fmt: skip
def test_wrappers(tmp_path, state, wrap, source):
    weights = load_weights(save(tmp_path, wrap(state)))
    assert weights.source == source
    assert equal(weights.state, state)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_safetensors(tmp_path, state, layout):
    save_file(to_layout(state, layout), tmp_path / 'file.any')
    weights = load_weights(tmp_path / 'file.any')
    assert weights.layout == layout
    assert equal(weights.state, state)


@pytest.mark.parametrize('layout, read', [*((name, None) for name in LAYOUTS), ('NHWC', 'NHWC')])
def test_a_layout_of_keys_is_not_taken_for_that_of_images(tmp_path, state, layout, read):
    save_file(to_layout(state, LAYOUTS[0]), tmp_path / 'a.safetensors', dict(format='pt', layout=layout))
    assert load_weights(tmp_path / 'a.safetensors').said.layout == read


def test_backbone_alone(tmp_path, state):
    bare = {key[len('backbone.') :]: tensor for key, tensor in state.items() if key.startswith('backbone.')}
    for content in (bare, prefixed(bare, 'backbone.')):
        weights = load_weights(save(tmp_path, content))
        assert weights.num_classes is None
        assert equal(weights.state, prefixed(bare, 'backbone.'))


def two_sets(kind):
    """A checkpoint with trained (seed 0) and averaged (seed 1) weights."""
    trained, averaged = tiny(seed=0).state_dict(), tiny(seed=1).state_dict()
    if kind == 'mmengine':  # EMAHook swaps them when it saves
        steps = {'steps': torch.tensor(9)}
        return {'state_dict': averaged, 'ema_state_dict': {**steps, **prefixed(trained, 'module.')}}
    if kind == 'timm':
        return {'state_dict': trained, 'state_dict_ema': averaged}
    return {'model_state_dict': trained, 'ema_state_dict': averaged}


@pytest.mark.parametrize('kind', ['mmengine', 'timm', 'other'])
@pytest.mark.parametrize('ema, seed', [('auto', 1), ('on', 1), ('off', 0)])
def test_averaged_weights(tmp_path, kind, ema, seed):
    weights = load_weights(save(tmp_path, two_sets(kind)), ema)
    assert equal(weights.state, tiny(seed=seed).state_dict())
    assert ('(EMA)' in weights.source) == (seed == 1)


def test_mmengine_writes_what_the_reader_takes_for_its_swap():
    from mmengine.model import ExponentialMovingAverage

    assert 'steps' in ExponentialMovingAverage(nn.Linear(1, 1)).state_dict()


@pytest.mark.parametrize(
    'content, ema, message',
    [
        (lambda state: state, 'on', 'no averaged .* only the file itself'),
        (lambda state: {'state_dict': state}, 'on', 'no averaged .* only state_dict'),
        (lambda state: {'ema_state_dict': state}, 'off', 'averaged .* alone, in ema_state_dict'),
        (lambda state: state, 'maybe', "ema='maybe': allowed are auto, on, off"),
    ],
)
def test_averaged_weights_that_are_not_there(tmp_path, state, content, ema, message):
    with pytest.raises(ValueError, match=message):
        load_weights(save(tmp_path, content(state)), ema)


@pytest.mark.parametrize('zipped', [True, False])
def test_pickled_code_is_refused_unless_trusted(tmp_path, state, zipped):
    path, marker = tmp_path / 'file.pth', tmp_path / 'marker'
    torch.save({**state, 'extra': Bomb(marker)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r'file.pth: holds pickled code \(posix.mkdir\), refused; --trust-checkpoint'):
        load_weights(path)
    assert not marker.exists()
    read_checkpoint(path, trust=True)
    assert marker.exists()


@pytest.mark.parametrize('key', ['head.fc.weight', 'head.fc.bias', 'backbone.stage0.branch_scale.norm.weight'])
def test_weights_that_are_no_floats(tmp_path, state, key):
    state[key] = state[key].to(torch.int32)
    with pytest.raises(ValueError, match=f'{key} is torch.int32, not torch.float32'):
        load_weights(save(tmp_path, state))


def test_pickled_module(tmp_path):
    model = nn.ModuleDict({'backbone': tiny().backbone})
    path = save(tmp_path, model)
    with pytest.raises(ValueError, match='holds pickled code'):
        load_weights(path)
    assert equal(load_weights(path, trust=True).state, model.state_dict())


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'the file is empty'),
        (b'no checkpoint at all\n' * 9, 'damaged, or not a checkpoint'),
        (b'PK\x03\x04' + bytes(99), 'damaged, or not a checkpoint'),
        (bytes(8) + b'{' + bytes(99), 'damaged, or not a checkpoint'),
        (b'\xff\xd8\xff\xe0' + bytes(99), 'damaged, or not a checkpoint'),
    ],
)
def test_no_checkpoint(tmp_path, content, message):
    path = tmp_path / 'file.pth'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f'file.pth: {message}'):
        load_weights(path)


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / 'absent.pth'):
        with pytest.raises(OSError, match=f'{path.name}: (no such run or file|is a folder)'):
            load_weights(path)


def test_a_flipped_bit_of_a_weight_is_noticed(tmp_path, state):
    path = save(tmp_path, state)
    data = bytearray(path.read_bytes())
    stored = state['head.fc.weight'].numpy().tobytes()
    data[data.index(stored) + 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match='wrong checksum'):
        load_weights(path)


NORM = 'backbone.stage2.2.branch_norm'
CONV = 'backbone.stage3.1.branch_conv_list.1.conv.weight'


def without(*keys):
    return lambda state: [state.pop(key) for key in keys]


def with_value(key, value):
    return lambda state: state.update({key: value(state.get(key))})


@pytest.mark.parametrize(
    'change, message',
    [
        (without(NORM + '.bias'), f'1 key missing: {NORM}.bias'),
        (without(CONV), f'1 key missing: {CONV}'),
        (without('head.fc.bias'), '1 key missing: head.fc.bias'),
        (lambda state: [state.pop(key) for key in list(state) if '.stage4.' in key], 'nothing of stage4'),
        (with_value(NORM + '.extra', lambda _: torch.zeros(8)), f'1 key too many: {NORM}.extra'),
        (with_value('backbone.stage2.999999.branch_norm.bias', lambda _: torch.zeros(8)), 'too many: backbone.stage2'),
        (with_value('head.fc.scale', lambda _: torch.zeros(4)), '1 key too many: head.fc.scale'),
        (with_value('neck.weight', lambda _: torch.zeros(4)), 'keys that are not of MobileOne .*: neck.weight'),
        (with_value('stage2.2.branch_norm.bias', lambda _: torch.zeros(16)), 'is there twice'),
        (with_value(CONV, lambda t: t[:-1].clone()), rf'wrong shape: {CONV} \[31, 16, 1, 1\] instead of'),
        (with_value(CONV, lambda t: t[0, 0, 0, 0]), rf'wrong shape: {CONV} \[\] instead of'),
        (with_value(CONV, lambda t: t.int()), f'{CONV} is torch.int32'),
        (with_value(CONV, lambda t: t.to(torch.complex64)), f'{CONV} is torch.complex64'),
        (with_value(CONV, lambda t: t.to_sparse()), f'{CONV} is not a plain dense tensor'),
        (with_value(CONV, lambda t: t[:1, :1].expand(1 << 20, 1 << 20, 1, 1)), 'than what is stored'),
        (with_value(CONV, lambda t: t * float('nan')), f'{CONV} holds NaN'),
        (with_value(CONV, lambda t: t + float('inf')), f'{CONV} holds NaN or infinite'),
        (with_value(NORM + '.running_var', lambda t: t - 9), f'{NORM}.running_var holds a negative variance'),
        (with_value(NORM + '.num_batches_tracked', lambda t: t.float()), 'is torch.float32, not torch.int64'),
        (with_value(CONV, lambda _: 'text'), f'1 key missing: {CONV}'),
        (with_value('backbone.stage0.branch_reparam.bias', lambda _: torch.zeros(8)), 'some blocks are fused'),
        (lambda state: state.clear(), 'holds no weights'),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings('ignore:Validating sparse tensor')
def test_what_does_not_fit_is_named(tmp_path, state, change, message):
    change(state)
    with pytest.raises(ValueError, match=f'file.pth: .*{message}'):
        load_weights(save(tmp_path, state))


@pytest.mark.parametrize('form', FORMS)
def test_squeeze_and_excitation_in_every_block(tmp_path, form):
    model = randomize_norms(classifier(TINY, 4, se_cfg=dict(ratio=16, every_block=True)))
    if form == 'fused':
        model.backbone.switch_to_deploy()
    actual = load_weights(save(tmp_path, model.state_dict()))
    assert equal(actual.state, model.state_dict()) and actual.structure.in_channels == 3


@pytest.mark.parametrize(
    'name, hint', [('head', r'\[7, 2\] .*model.head.num_classes=7 builds'), ('fc', 'model.num_classes=7 builds')]
)
def test_another_head_of_another_network_names_the_count(tmp_path, name, hint):
    few, many = (nn.ModuleDict({'conv': nn.Conv2d(3, 2, 1), name: nn.Linear(2, count)}) for count in (7, 9))
    with pytest.raises(ValueError, match=hint):
        load_weights(save(tmp_path, few.state_dict()), plain=True).load_into(many)


def test_other_networks(tmp_path):
    with pytest.raises(ValueError, match=r'no key of MobileOne in any layout .* found 0.weight, 0.bias'):
        load_weights(save(tmp_path, nn.Sequential(nn.Linear(2, 2)).state_dict()))
    resnet = {'backbone.conv1.weight': torch.ones(4, 3, 7, 7), 'head.fc.weight': torch.ones(9, 4)}
    with pytest.raises(ValueError, match='found backbone.conv1.weight, .*: another network, which tools/train.py'):
        load_weights(save(tmp_path, resnet))
    with pytest.raises(ValueError, match='holds no dict of tensors'):
        load_weights(save(tmp_path, [torch.zeros(2)]))


def test_strict_loading(tmp_path, state):
    model = tiny(seed=1)
    load_weights(save(tmp_path, state)).load_into(model)
    assert equal(model.state_dict(), state)


@pytest.mark.parametrize(
    'model, message',
    [
        (
            lambda: classifier('s0', 4),
            r'another network: it holds .*widths.*; the config builds MobileOne-s0, branched',
        ),
        (lambda: classifier(TINY, 4, deploy=True), 'another network: it holds .* branched.* fused.*convert_checkpoint'),
        (
            lambda: classifier(TINY, 9),
            'another network: .* 4 classes; .* 9 classes; .* model.head.num_classes=4 builds a head',
        ),
        (lambda: classifier(TINY, 4, use_skip=False), r'\d+ keys too many: backbone.stage1.1.branch_norm.weight'),
        (lambda: classifier(TINY, 4, num_conv_branches=3), 'k = 3'),
    ],
)
def test_strict_loading_of_what_does_not_fit(tmp_path, state, model, message):
    model = model()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=f'file.pth: .*{message}'):
        load_weights(save(tmp_path, state)).load_into(model)
    assert equal(model.state_dict(), before)


def test_strict_loading_of_the_backbone_alone(tmp_path, state):
    model = classifier(TINY, 9)
    head = model.head.fc.weight.clone()
    load_weights(save(tmp_path, state)).load_into(model, new_head=True)
    assert torch.equal(model.head.fc.weight, head)
    assert torch.equal(model.backbone.stage2[2].branch_norm.running_mean, state[NORM + '.running_mean'])


def test_unknown_layout(state):
    with pytest.raises(ValueError, match="layout 'keras' is unknown; known are mmpretrain, apple, timm"):
        to_layout(state, 'keras')
