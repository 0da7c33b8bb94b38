"""Train-time branches of a block: how each type is built, and the convolution that it is.

A branch is an ordinary module, linear in eval mode. Its type says three things of it, as pure functions: how to build
it; the kernel before its last batch norm, together with that norm, from which moments train it; its kernel and bias
in eval mode, into which it is fused. ``register`` adds a type; docs/branches.md shows one.

    ConvBN           KxK convolution - BN                 MobileOne, arXiv 2206.04040, Fig. 3
    PointwiseBN      1x1 convolution - BN ("scale")       the same
    SkipBN           BN alone ("skip")                    the same
    Conv1xKBN        1xK convolution - BN                 ACNet, arXiv 1908.03930, Fig. 1
    ConvKx1BN        Kx1 convolution - BN                 the same
    PointwiseConvBN  1x1 - BN - KxK convolution - BN      Diverse Branch Block, arXiv 2103.13425, Transform III
    PointwisePoolBN  1x1 - BN - average pooling - BN      the same, Transforms III and V

Shapes: O output channels, I input channels per group, K kernel size (odd).
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .arguments import check_integer
from .reparam import Affine, Kernel, compose_kernels, fold_affine, identity_kernel, norm_affine
from .text import hint, one_line

Norm = Callable[[int], nn.Module]


class ConvShape(NamedTuple):
    """The convolution that a block is, with "same" padding."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1

    @property
    def padding(self) -> int:
        return self.dilation * (self.kernel_size - 1) // 2

    def conv(self, kernel_size: int | tuple[int, int] | None = None, **options) -> nn.Conv2d:
        """A convolution of this shape, without bias; ``options`` are of ``nn.Conv2d`` and go before its own."""
        size = kernel_size or self.kernel_size
        height, width = (size, size) if isinstance(size, int) else size
        padding = self.dilation * (height - 1) // 2, self.dilation * (width - 1) // 2
        own = dict(stride=self.stride, padding=padding, dilation=self.dilation, groups=self.groups, bias=False)
        return nn.Conv2d(self.in_channels, self.out_channels, (height, width), **{**own, **options})

    def apply(self, x: Tensor, kernel: Kernel) -> Tensor:
        """x (N, in_channels, H, W) through ``kernel``."""
        return F.conv2d(x, *kernel, self.stride, self.padding, self.dilation, self.groups)


@dataclass(frozen=True)
class BranchType:
    """What a block needs to know of a branch.

    Attributes:
        build: ``(shape, norm, **options)`` makes the module; ``norm`` makes a normalization layer for a channel count,
            ``options`` are the other keys of the config.
        kernel: ``(module, shape)`` gives the kernel (O, I, K, K) and bias (O,) that the module computes in eval mode.
        linear: ``(module, shape)`` gives what stands before the last norm, and that norm: a kernel (O, I, K, K), or for
            a branch that only weighs the pixel under the kernel's center one number a channel, (O,) or a depthwise
            (O, 1, 1, 1), or None where all are one. It gives None instead of both if something before that norm is not
            linear in training: blocks with such a branch train by their branches.
        fits: where it can stand; elsewhere blocks leave it out.
        slot: its attribute of the block. In ``branch_scale`` and ``branch_norm`` there is one, in the others a list.
    """

    build: Callable[..., nn.Module]
    kernel: Callable[[nn.Module, ConvShape], Kernel]
    linear: Callable[[Any, ConvShape], tuple[Tensor | None, nn.Module] | None] = lambda module, shape: None
    fits: Callable[[ConvShape], bool] = lambda shape: True
    slot: str = 'branch_list'


BRANCH_TYPES: dict[str, BranchType] = {}


def register(name: str, kind: BranchType) -> None:
    """Make ``dict(type=name)`` a branch of configs.

    Raises:
        ValueError: if the name is taken by another type.
    """
    if BRANCH_TYPES.setdefault(name, kind) is not kind:
        raise ValueError(f'branch type {name!r} is registered already')


def named_types(branches: Sequence[Mapping], shape: ConvShape) -> Iterator[tuple[str, BranchType, dict]]:
    """Name, type and options of every branch of a block of this shape, in the order of ``branches``.

    Raises:
        ValueError: for what is no dict with a known ``type`` and a ``count`` that its slot holds.
    """
    remedy = 'mobileone_ext.branches.register adds one, in a file that custom_imports of the config names'
    filled = set()  # slots for one
    for branch in branches:
        options = dict(branch) if isinstance(branch, Mapping) else {}
        name, count = options.pop('type', None), options.pop('count', 1)
        kind = BRANCH_TYPES.get(name) if isinstance(name, str) else None
        if kind is None:
            raise ValueError(f'branches: {branch!r} is of no registered type{hint(name, BRANCH_TYPES)} ({remedy})')
        single = not kind.slot.endswith('_list')
        check_integer(f'branches: {name}: count', count, 0, 1 if single else None)
        if single and kind.slot in filled:
            raise ValueError(f'branches: {name}: there is one place for it, {kind.slot}')
        filled.add(kind.slot)
        if kind.fits(shape):
            yield from [(name, kind, options)] * count


@torch.no_grad()
def prove(name: str, kind: BranchType, branch: nn.Module, shape: ConvShape) -> None:
    """Hold what ``kind`` says of ``branch`` against what it computes, on noise, with norms of arbitrary statistics.

    Raises:
        ValueError: if they differ, as for what is not linear, or has another stride, padding or size than the block.
    """
    generator = torch.Generator().manual_seed(0)
    copied = copy.deepcopy(branch).cpu().double().eval()
    for module in copied.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (*module.parameters(), module.running_mean, module.running_var):
                if tensor is not None:
                    tensor.uniform_(0.5, 1.5, generator=generator)
    size = 2 * shape.padding + 6
    x = torch.randn(2, shape.in_channels, size, size, generator=generator, dtype=torch.float64, device='cpu')
    try:
        with torch.random.fork_rng(devices=[]):
            pairs = {'kernel': (copied(x), shape.apply(x, kind.kernel(copied, shape)))}
            linear = kind.linear(copied, shape)
            if linear is not None:
                weight, norm = linear
                if weight is None or weight.dim() == 1 or weight.shape[-1] < shape.kernel_size:
                    one = identity_kernel(shape.in_channels, shape.groups, shape.kernel_size, like=x)
                    weight = one if weight is None else one * weight.reshape(-1, 1, 1, 1)
                out = shape.apply(x, Kernel(weight, weight.new_zeros(shape.out_channels)))
                expected = copy.deepcopy(norm).train()(out)
                pairs['linear'] = copied.train()(x), expected
    except Exception as error:  # whatever somebody's module, or torch inside it, raises
        raise ValueError(f'branch type {name}: {type(error).__name__}: {one_line(error)}') from error
    for function, (out, expected) in pairs.items():
        if out.shape != expected.shape:
            apart = f'{tuple(expected.shape)} for its {tuple(out.shape)}'
        elif not (difference := (out - expected).abs().max()) <= 1e-6 * (largest := expected.abs().max()):
            apart = f'by {difference:.1e} where the largest is {largest:.1e}'
        else:
            continue
        raise ValueError(
            f'branch type {name}: {function}() is not what the branch computes ({apart}) for {shape}; a branch is '
            "linear, with the block's stride and padding"
        )


def running_affine(norm: nn.Module) -> Affine:
    """What ``norm`` does in eval mode.

    Raises:
        ValueError: if it is no batch norm with running statistics.
    """
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        raise ValueError(f'{type(norm).__name__} cannot be fused: only batch norm with running statistics is linear')
    return norm_affine(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)


class PickedSequential(nn.Sequential):
    """Modules behind every ``stride``-th pixel.

    A strided 1x1 convolution over 3 channels corrupts memory in its backward pass on CPU in channels_last (torch 2.13,
    2.14), and is no faster.
    """

    def __init__(self, stride: int, modules: OrderedDict):
        super().__init__(modules)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        for module in self:
            x = module(x)
        return x


class PaddedNorm(nn.Module):
    """Batch norm, then a border of what it makes of zero: as if its input had been padded, not its output."""

    def __init__(self, norm: nn.Module, padding: int):
        super().__init__()
        self.norm, self.padding = norm, padding

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        border = running_affine(self.norm).shift.to(x)[:, None, None]
        return F.pad(x - border, [self.padding] * 4) + border


def _conv_bn(conv: nn.Conv2d, norm: Norm) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=conv, norm=norm(conv.out_channels)))


def _padded(weight: Tensor, shape: ConvShape) -> Tensor:
    """A centered kernel (O, I, k, l) as (O, I, K, K)."""
    margins = [(shape.kernel_size - size) // 2 for size in weight.shape[:1:-1]]
    return F.pad(weight, [margin for margin in margins for _ in range(2)]) if any(margins) else weight


def _conv_kernel(branch: Any, shape: ConvShape) -> Kernel:
    return fold_affine(_padded(branch.conv.weight, shape), running_affine(branch.norm), branch.conv.bias)


def _conv_linear(branch: Any, shape: ConvShape) -> tuple[Tensor, nn.Module]:
    return _padded(branch.conv.weight, shape), branch.norm


register(
    'ConvBN',
    BranchType(
        build=lambda shape, norm: _conv_bn(shape.conv(), norm),
        kernel=_conv_kernel,
        linear=_conv_linear,
        slot='branch_conv_list',
    ),
)


def _build_pointwise(shape: ConvShape, norm: Norm) -> nn.Module:
    conv = shape.conv(1, stride=1)
    return PickedSequential(shape.stride, OrderedDict(conv=conv, norm=norm(shape.out_channels)))


def _pointwise_linear(branch: Any, shape: ConvShape) -> tuple[Tensor, nn.Module]:
    weight = branch.conv.weight
    return (_padded(weight, shape) if shape.groups == 1 else weight), branch.norm


register(
    'PointwiseBN',
    BranchType(
        build=_build_pointwise,
        kernel=_conv_kernel,
        linear=_pointwise_linear,
        fits=lambda shape: shape.kernel_size > 1,
        slot='branch_scale',
    ),
)


def _skip_kernel(norm: Any, shape: ConvShape) -> Kernel:
    affine = running_affine(norm)
    return fold_affine(identity_kernel(shape.in_channels, shape.groups, shape.kernel_size, like=affine.scale), affine)


register(
    'SkipBN',
    BranchType(
        build=lambda shape, norm: norm(shape.in_channels),
        kernel=_skip_kernel,
        linear=lambda norm, shape: None if norm.weight is None else (None, norm),
        fits=lambda shape: shape.in_channels == shape.out_channels and shape.stride == 1,
        slot='branch_norm',
    ),
)


def _larger_than_a_pixel(shape: ConvShape) -> bool:
    return shape.kernel_size > 1


for _name, _size in (('Conv1xKBN', lambda size: (1, size)), ('ConvKx1BN', lambda size: (size, 1))):
    register(
        _name,
        BranchType(
            build=lambda shape, norm, size=_size: _conv_bn(shape.conv(size(shape.kernel_size)), norm),
            kernel=_conv_kernel,
            linear=_conv_linear,
            fits=_larger_than_a_pixel,
        ),
    )


def _pointwise_norm(shape: ConvShape, norm: Norm, channels: int) -> OrderedDict:
    """1x1 convolution to so many channels, and a norm that pads for what follows."""
    conv = nn.Conv2d(shape.in_channels, channels, 1, groups=shape.groups, bias=False)
    return OrderedDict(pointwise=conv, padded=PaddedNorm(norm(channels), shape.padding))


def _pointwise_conv_build(shape: ConvShape, norm: Norm) -> nn.Module:
    layers = _pointwise_norm(shape, norm, shape.in_channels)
    return nn.Sequential(OrderedDict(layers, conv=shape.conv(padding=0), norm=norm(shape.out_channels)))


def _behind_pointwise(branch: Any, weight: Any, shape: ConvShape) -> Kernel:
    """``weight`` behind the 1x1 convolution and the norm of a branch, then its last norm."""
    first = fold_affine(branch.pointwise.weight, running_affine(branch.padded.norm))
    kernel = compose_kernels(first, weight, shape.groups)
    return fold_affine(kernel.weight, running_affine(branch.norm), kernel.bias)


def _pointwise_conv_kernel(branch: Any, shape: ConvShape) -> Kernel:
    return _behind_pointwise(branch, branch.conv.weight, shape)


register(
    'PointwiseConvBN',
    BranchType(
        build=_pointwise_conv_build,
        kernel=_pointwise_conv_kernel,
        fits=_larger_than_a_pixel,
    ),
)


def _is_depthwise(shape: ConvShape) -> bool:
    return shape.groups == shape.in_channels == shape.out_channels


def _pool_build(shape: ConvShape, norm: Norm) -> nn.Module:
    # Where every channel has a kernel of its own, the 1x1 convolution and its norm would scale what the last norm
    # scales anyway: as in the paper's code they are left out.
    depthwise = _is_depthwise(shape)
    layers = OrderedDict() if depthwise else _pointwise_norm(shape, norm, shape.out_channels)
    pool = nn.AvgPool2d(shape.kernel_size, shape.stride, shape.padding if depthwise else 0)
    return nn.Sequential(OrderedDict(layers, pool=pool, norm=norm(shape.out_channels)))


def _average(shape: ConvShape, like: Tensor) -> Tensor:
    size = shape.kernel_size
    return identity_kernel(shape.out_channels, shape.groups, 1, like).expand(-1, -1, size, size) / size**2


def _pool_kernel(branch: Any, shape: ConvShape) -> Kernel:
    affine = running_affine(branch.norm)
    average = _average(shape, like=affine.scale)
    return fold_affine(average, affine) if _is_depthwise(shape) else _behind_pointwise(branch, average, shape)


def _pool_linear(branch: Any, shape: ConvShape) -> tuple[Tensor, nn.Module] | None:
    weight = branch.norm.weight
    return (_average(shape, like=weight), branch.norm) if _is_depthwise(shape) and weight is not None else None


register(
    'PointwisePoolBN',
    BranchType(
        build=_pool_build,
        kernel=_pool_kernel,
        linear=_pool_linear,
        fits=lambda shape: shape.kernel_size > 1 and shape.dilation == 1,  # which average pooling lacks
    ),
)
SHIPPED = frozenset(BRANCH_TYPES)


def listed_branches(
    branches: Sequence[Mapping] | None, num_conv_branches: int | None, use_scale: bool | None, use_skip: bool | None
) -> Sequence[Mapping]:
    """``branches``, or what the shorthands say of them.

    Raises:
        ValueError: if both are given.
    """
    counts = {'ConvBN': num_conv_branches, 'PointwiseBN': use_scale, 'SkipBN': use_skip}
    if branches is None:
        return [dict(type=name, count=1 if count is None else index(count)) for name, count in counts.items()]
    if any(count is not None for count in counts.values()):
        raise ValueError('branches, and num_conv_branches, use_scale or use_skip say the same thing; give one of both')
    return branches
