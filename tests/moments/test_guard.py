"""Branches that are not plain: whatever changes or watches them finds `auto` and `moments` doing as the branches do."""

import copy
import pickle
from collections import OrderedDict
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import randomize_norms
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations, parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FrozenBatchNorm2d

from mobileone_ext.block import MobileOneBlock
from mobileone_ext.moments import dispatch, guard

pytestmark = pytest.mark.filterwarnings('ignore')

KINDS = {
    'depthwise': dict(in_channels=6, out_channels=6, kernel_size=3, groups=6, num_conv_branches=2),
    'pointwise': dict(in_channels=6, out_channels=6, kernel_size=1, num_conv_branches=2),
}
IMPLS = ('auto', 'moments')


@pytest.fixture(autouse=True)
def always_pays(monkeypatch):
    """The maps here are tiny; `auto` would take the branches for that."""
    monkeypatch.setattr(dispatch, 'is_faster', lambda *args: True)


class Adapter(nn.Conv2d):
    """As low-rank adapters are: something is added to what the weight makes."""

    def forward(self, x):
        out = super().forward(x)
        return out + 0.3 * out.roll(1, 1)


class LoudNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Loud(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


class Noted(torch.Tensor):
    """A subclass that does nothing."""


def conv(block):
    return block.branch_conv_list[0].conv


def norm(block):
    return block.branch_conv_list[0].norm


def replace_conv(block, kind=nn.Conv2d, **options):
    old = conv(block)
    options = dict(stride=old.stride, padding=old.padding, groups=old.groups, bias=False) | options
    new = kind(old.in_channels, old.out_channels, old.kernel_size, **options).to(old.weight.dtype)
    with torch.no_grad():
        new.weight.copy_(old.weight)
    block.branch_conv_list[0].conv = new


def replace_norm(block, make):
    block.branch_conv_list[0].norm = randomize_norms(make(6)).to(norm(block).weight.dtype)


def insert(block, module, place):
    modules = [*block.branch_conv_list[0].named_children()]
    modules.insert(place, ('more', module))
    block.branch_conv_list[0] = nn.Sequential(OrderedDict(modules))


def double(*args):
    return 2 * args[-1]


def double_inputs(_, inputs):
    return tuple(2 * x for x in inputs)


def double_all(_, grads, *rest):
    return tuple(None if grad is None else 2 * grad for grad in grads)


def set_forward(module):
    forward = module.forward
    module.forward = lambda x: 3 * forward(x)


def shift_kernel(block):
    """The same size of output from another place."""
    old = conv(block)
    pad = nn.ZeroPad2d((2 * (block.kernel_size // 2), 0, 2 * (block.kernel_size // 2), 0))
    replace_conv(block, padding=0)
    conv(block).register_forward_pre_hook(lambda _, inputs: (pad(inputs[0]),))
    assert conv(block) is not old


def quantization_aware(block):
    block.qconfig = torch.ao.quantization.get_default_qat_qconfig('fbgemm')
    torch.ao.quantization.prepare_qat(block.float(), inplace=True)


def fuse_then_quantize(block):
    for branch in block.branch_conv_list:
        torch.ao.quantization.fuse_modules_qat(branch.train(), [['conv', 'norm']], inplace=True)
    quantization_aware(block)


def plain_attribute(module, name):
    """As DataParallel's replicas and hand-written parametrizations have it."""
    value = getattr(module, name)
    del module._parameters[name]
    module.register_parameter(f'{name}_raw', nn.Parameter(value.detach().clone()))
    module.register_forward_pre_hook(lambda m, _: m.__dict__.__setitem__(name, 2 * m._parameters[f'{name}_raw']))
    module.__dict__[name] = value.detach()


CHANGES = {
    # Each kind of hook somewhere, and somewhere else for each kind of module.
    'forward hook on conv': lambda b: conv(b).register_forward_hook(double),
    'forward pre hook on norm': lambda b: norm(b).register_forward_pre_hook(double_inputs),
    'full backward hook on branch': lambda b: b.branch_conv_list[1].register_full_backward_hook(double_all),
    'backward pre hook on skip': lambda b: b.branch_norm.register_full_backward_pre_hook(double_all),
    'forward hook on scale': lambda b: (b.branch_scale or norm(b)).register_forward_hook(double),
    'forward hook with arguments': lambda b: conv(b).register_forward_hook(
        lambda m, args, kwargs, out: 2 * out, with_kwargs=True
    ),
    'old backward hook': lambda b: conv(b).register_backward_hook(
        lambda m, into, out: tuple(None if g is None else 2 * g for g in into)
    ),
    'own forward': lambda b: set_forward(conv(b)),
    'own _conv_forward': lambda b: setattr(
        conv(b), '_conv_forward', lambda x, *rest: 2 * nn.Conv2d._conv_forward(conv(b), x, *rest)
    ),
    'old weight_norm': lambda b: nn.utils.weight_norm(conv(b)),
    'weight_norm': lambda b: parametrizations.weight_norm(conv(b)),
    'parametrization': lambda b: parametrize.register_parametrization(conv(b), 'weight', Halved()),
    'pruning': lambda b: prune.l1_unstructured(conv(b), 'weight', 0.5),
    'pruning of a norm': lambda b: prune.random_unstructured(norm(b), 'bias', 0.5),
    'weight computed in a hook': lambda b: plain_attribute(conv(b), 'weight'),
    'norm weight computed in a hook': lambda b: plain_attribute(norm(b), 'weight'),
    'adapter': lambda b: replace_conv(b, Adapter),
    'norm subclass': lambda b: replace_norm(b, LoudNorm),
    'bias': lambda b: replace_conv(b, bias=True),
    'reflected border': lambda b: replace_conv(b, padding_mode='reflect'),
    'other padding': shift_kernel,
    'dilation': lambda b: replace_conv(b, dilation=2, padding=2 * (b.kernel_size // 2)),
    'no affine parameters': lambda b: replace_norm(b, partial(nn.BatchNorm2d, affine=False)),
    'statistics no longer kept': lambda b: setattr(norm(b), 'track_running_stats', False),
    'norm without bias': lambda b: norm(b).register_parameter('bias', None),
    'group norm': lambda b: replace_norm(b, partial(nn.GroupNorm, 2)),
    'no norm': lambda b: replace_norm(b, lambda channels: nn.Identity()),
    'frozen norm of torchvision': lambda b: replace_norm(b, FrozenBatchNorm2d),
    'one norm in eval': lambda b: norm(b).eval(),
    'all norms in eval': lambda b: [m.eval() for m in b.modules() if isinstance(m, nn.BatchNorm2d)],
    'momentum as a tensor': lambda b: setattr(norm(b), 'momentum', torch.tensor(0.3, dtype=torch.float64)),
    'dropout in a branch': lambda b: insert(b, nn.Dropout(0.5), 2),
    'activation in a branch': lambda b: insert(b, nn.GELU(), 1),
    'other module as a branch': lambda b: b.branch_conv_list.__setitem__(
        0, nn.AvgPool2d(b.kernel_size, b.stride, b.kernel_size // 2)
    ),
    'sequence of a class of its own': lambda b: setattr(b.branch_conv_list[1], '__class__', Loud),
    'tensor subclass': lambda b: setattr(conv(b), 'weight', nn.Parameter(conv(b).weight.detach().as_subclass(Noted))),
    'quantization-aware': quantization_aware,
    'quantization-aware, fused': fuse_then_quantize,
    'unlike batch norms': lambda b: setattr(norm(b), '__class__', LoudNorm),
}
# What moments know: they take these, and the result is the branches' to rounding.
PLAIN = {
    'nothing': lambda b: None,
    'a note on a module': lambda b: [setattr(m, 'note', 'seen') for m in b.modules()],
    'other momentum and eps': lambda b: (setattr(norm(b), 'momentum', 0.7), setattr(norm(b), 'eps', 0.1)),
    'cumulative average': lambda b: setattr(norm(b), 'momentum', None),
    'a frozen norm': lambda b: norm(b).requires_grad_(False),
    'a frozen kernel': lambda b: conv(b).requires_grad_(False),
    'a frozen branch': lambda b: b.branch_conv_list[0].requires_grad_(False),
    'one more branch': lambda b: b.branch_conv_list.append(copy.deepcopy(b.branch_conv_list[0])),
    'one branch less': lambda b: b.branch_conv_list.__delitem__(0),
    'no skip': lambda b: setattr(b, 'branch_norm', None),
    'two branches one': lambda b: b.branch_conv_list.__setitem__(0, b.branch_conv_list[1]),
    'hooks on the block': lambda b: b.register_forward_hook(double),
    'hooks on parameters': lambda b: conv(b).weight.register_hook(lambda grad: 2 * grad),
    'hooks of the state dict': lambda b: conv(b).register_state_dict_pre_hook(lambda *args: None),
    'channels last': lambda b: b.to(memory_format=torch.channels_last),
}
every_block = pytest.mark.parametrize(('kind', 'impl'), [*zip(KINDS, IMPLS)], ids=[*KINDS])
depthwise = pytest.mark.parametrize(('kind', 'impl'), [('depthwise', 'auto')], ids=['depthwise'])


def make(kind, impl='moments'):
    torch.manual_seed(0)
    return randomize_norms(MobileOneBlock(**KINDS[kind], act=nn.SiLU, train_impl=impl)).double().train()


def changed(kind, impl, change):
    block = make(kind, impl)
    torch.manual_seed(1)
    change(block)
    return block


def images():
    return torch.randn(3, 6, 8, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def train(block):
    """Three steps of SGD, then an evaluation: outputs, gradients of the input, and the state."""
    dtype = next(block.parameters()).dtype
    optimizer = torch.optim.SGD([p for p in block.parameters() if p.requires_grad], 0.1, momentum=0.9)
    results = []
    for step in range(3):
        x = (images() + step).to(dtype).requires_grad_()
        torch.manual_seed(step)
        out = block(x)
        optimizer.zero_grad()
        out.square().mean().backward()
        optimizer.step()
        results += [out.detach(), x.grad]
    with torch.no_grad():
        results.append(block.eval()(images().to(dtype)))
    return results, {name: value for name, value in block.state_dict().items() if isinstance(value, torch.Tensor)}


def assert_trains_as_branches(kind, impl, change, exactly):
    block, branches = changed(kind, impl, change), changed(kind, 'branches', change)
    assert_equal(train(block), train(branches), exactly)


def assert_equal(found, expected, exactly):
    tolerance = dict(rtol=0, atol=0) if exactly else dict(rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, expected, **tolerance, equal_nan=True)


@depthwise
@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_changed_branches_train_as_branches(kind, impl, change):
    assert_trains_as_branches(kind, impl, change, exactly=True)


@depthwise
@pytest.mark.parametrize('change', PLAIN.values(), ids=PLAIN)
def test_plain_branches_train_by_moments(kind, impl, change):
    assert changed(kind, impl, change).takes_moments(images())
    assert_trains_as_branches(kind, impl, change, exactly=False)


@every_block
@pytest.mark.parametrize(
    'register', ['forward_hook', 'forward_pre_hook', 'full_backward_hook', 'full_backward_pre_hook']
)
def test_who_only_looks_sees_every_module(kind, impl, register):
    block, seen = make(kind, impl), []
    modules = [module for branch in block.branches() for module in (branch, *branch.children())]
    for module in modules:
        getattr(module, f'register_{register}')(lambda module, *rest: seen.append(module))
    block(images().requires_grad_()).sum().backward()
    assert sorted(map(id, seen)) == sorted(map(id, modules))


GLOBAL = ['forward_hook', 'forward_pre_hook', 'full_backward_hook', 'full_backward_pre_hook']


@pytest.mark.parametrize('register', GLOBAL)
def test_hooks_for_all_modules_fire(register):
    block, seen = make('depthwise'), []
    handle = getattr(nn.modules.module, f'register_module_{register}')(lambda module, *rest: seen.append(module))
    try:
        block(images().requires_grad_()).sum().backward()
    finally:
        handle.remove()
    assert {conv(block), norm(block)} <= set(seen)
    assert block.takes_moments(images())  # once the hook is gone


@pytest.mark.parametrize(
    ('owner', 'name'),
    [(nn.Conv2d, 'forward'), (nn.Conv2d, '_conv_forward'), (nn.BatchNorm2d, 'forward'), (nn.Module, '__call__')]
    + [(F, 'conv2d'), (F, 'batch_norm')],
    ids=str,
)
def test_what_is_replaced_for_all_modules_runs(owner, name, monkeypatch):
    """Counters of multiply-adds and profilers do so."""
    block, original, calls = make('depthwise'), getattr(owner, name), []
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: [calls.append(1), original(*args, **kwargs)][1])
    block(images())
    assert len(calls) >= 2


@every_block
def test_gradient_penalty(kind, impl):
    block, branches = make(kind, impl), make(kind, 'branches')

    def penalty(block):
        x = images().requires_grad_()
        out = block(x)
        (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        (slope.square().mean() + out.sum()).backward()
        return [slope.detach(), x.grad, *(parameter.grad for parameter in block.parameters())]

    assert block.takes_moments(images())
    torch.testing.assert_close(penalty(block), penalty(branches), rtol=1e-8, atol=1e-8)


def feature(block, x):
    """Through torchvision, which traces in training and in eval mode."""
    return create_feature_extractor(nn.Sequential(OrderedDict(block=block)), ['block'])(x)['block']


def exported(strict):
    return lambda block, x: torch.export.export(block, (x,), strict=strict).module()(x)


def under(mode):
    def call(block, x):
        with mode:
            return block(x)

    return call


class Doubling(TorchFunctionMode):
    """Changes what F.conv2d returns."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        return 2 * out if function is F.conv2d else out


def forward_mode(block, x):
    with forward_ad.dual_level():
        return torch.stack([*forward_ad.unpack_dual(block(forward_ad.make_dual(x, torch.ones_like(x))))])


def functional(block, x, factor=2):
    tensors = {name: factor * value for name, value in block.named_parameters()}
    buffers = {name: factor * value if value.ndim else value.clone() for name, value in block.named_buffers()}
    return torch.func.functional_call(block, (tensors, buffers), (x,))


def squares(block, factor=2):
    return lambda x: functional(block, x, factor).square().sum()


TRANSFORMS = {
    'symbolic_trace': lambda block, x: torch.fx.symbolic_trace(block)(x),
    'create_feature_extractor': feature,
    'jit.trace': lambda block, x: torch.jit.trace(block, x, check_trace=False)(x),
    'jit.script': lambda block, x: torch.jit.script(block)(x),
    'export': exported(strict=False),
    'export, strict': exported(strict=True),
    'make_fx': lambda block, x: make_fx(block)(x)(x),
    'flop counter': lambda block, x: under(FlopCounterMode(display=False))(block, x),
    'function mode': under(Doubling()),
    'forward mode': forward_mode,
    'jvp': lambda block, x: torch.func.jvp(lambda x: functional(block, x), (x,), (torch.ones_like(x),)),
    'grad': lambda block, x: torch.func.grad(squares(block))(x),
    'functional_call': functional,
    'vmap': lambda block, x: torch.func.vmap(lambda f: functional(block, x, f), randomness='different')(
        torch.ones(2).to(x)
    ),
    'replica': lambda block, x: replica(block)(x),
    'deepcopy': lambda block, x: copy.deepcopy(block)(x),
    'pickle': lambda block, x: pickle.loads(pickle.dumps(block))(x),
    'inference mode': under(torch.inference_mode()),
    'no gradients': under(torch.no_grad()),
    'default device': under(torch.device('cpu')),
    'one row': lambda block, x: block(x[:1, :, :1]),
}


def replica(block):
    """As DataParallel makes them on other devices."""
    copies = {module: module._replicate_for_data_parallel() for module in block.modules()}
    for module, new in copies.items():
        for name, child in module.named_children():
            new._modules[name] = copies[child]
        for name, parameter in module._parameters.items():
            if parameter is None:
                new._parameters[name] = None
            else:
                setattr(new, name, 2 * parameter)
        for name, buffer in module.named_buffers(recurse=False):
            new._buffers[name] = buffer.clone()
    return copies[block]


@depthwise
@pytest.mark.parametrize('transform', TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_and_tracers_see_what_the_branches_do(kind, impl, transform):
    block, branches = make(kind, impl), make(kind, 'branches')
    block.act = branches.act = nn.Identity()  # SiLU has no forward-mode derivative of every kind
    found, expected = transform(block, images()), transform(branches, images())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_what_is_traced_holds_the_branches():
    """So that observers, extractors and converters find every convolution and norm."""
    block = make('depthwise')
    targets = {node.target for node in torch.fx.symbolic_trace(block).graph.nodes if node.op == 'call_module'}
    assert {'branch_conv_list.1.conv', 'branch_conv_list.1.norm', 'branch_scale.norm', 'branch_norm'} <= targets


def test_fx_quantization_aware_training():
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    results = []
    for impl in ('moments', 'branches'):
        block = make('depthwise', impl).float()
        block = prepare_qat_fx(block, get_default_qat_qconfig_mapping('fbgemm'), (images().float(),))
        results.append(train(block)[0])
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_efficient_conv_bn_eval_of_mmengine():
    from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval

    from mobileone_ext.backbone import MobileOne

    arch = dict(num_blocks=[1, 1, 1, 1], width_factor=[0.125] * 4, num_conv_branches=[2] * 4)
    x, results = torch.randn(4, 3, 64, 64, dtype=torch.float64), []
    for turn_on in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(OrderedDict(backbone=randomize_norms(MobileOne(arch, norm_eval=True)).double())).train()
        if turn_on:
            turn_on_efficient_conv_bn_eval(net, ['backbone'])
            assert 'efficient' in net.backbone.forward.__self__.code
        results.append(net(x)[0])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@every_block
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_models_train(kind, impl, dtype):
    """With kernels and norms of that type, and with norms in float32."""
    for wide_norms in (False, True):
        block = make(kind, impl).to(dtype)
        if wide_norms:
            [module.float() for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
        exact = make(kind, 'branches').to(dtype).double()
        x = images().to(dtype)
        assert block.takes_moments(x)
        out = block(x)
        out.float().square().mean().backward()
        expected = exact(x.double())
        expected.square().mean().backward()
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, rtol=0.05, atol=0.05)
        for found, gradient in zip(block.parameters(), exact.parameters()):
            scale = float(gradient.grad.abs().max())
            torch.testing.assert_close(found.grad.double(), gradient.grad, rtol=0.1, atol=0.05 * max(scale, 0.1))


@pytest.mark.parametrize('case', ['float32 into half', 'half into float32', 'a norm of another type', 'meta'])
def test_what_does_not_fit_fails_as_the_branches_do(case):
    errors = []
    for impl in ('moments', 'branches'):
        block, x = make('depthwise', impl).float(), images().float()
        if case == 'float32 into half':
            block = block.half()
        elif case == 'half into float32':
            x = x.half()
        elif case == 'meta':
            block, x = block.to('meta'), x.to('meta')
            errors.append(block(x).shape)
            continue
        else:
            norm(block).double()
        with pytest.raises(RuntimeError) as error:
            block(x)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_a_network_says_what_keeps_it_from_moments():
    block = make('depthwise')
    assert 'takes the branches' not in repr(block)
    conv(block).register_forward_hook(double)
    assert 'takes the branches: branch_conv_list.0: conv has hooks' in repr(block)


def test_new_modules_are_plain():
    """Attributes that a torch to come adds to its modules must not turn moments off."""
    branch = nn.Sequential(OrderedDict(conv=nn.Conv2d(2, 4, 3, bias=False), norm=nn.BatchNorm2d(4)))
    built = guard.description(branch)
    for kind in guard.PLAIN_NORMS:
        branch.norm = kind(4)
        assert guard.is_plain_norm(branch.norm) and guard.difference(branch, built) is None
