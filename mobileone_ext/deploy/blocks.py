"""Blocks of parallel convolutions as other libraries name them, read as branches and fused as ours are.

A block is known by the names of its parts. What is parallel in it, and that nothing else is in the way, is not
concluded from names: anywhere.py holds every fused block against the block itself.

RepVGG, arXiv 2101.03697, Fig. 4; MobileOne, arXiv 2206.04040, Fig. 3.
"""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from ..block import MobileOneBlock
from ..branches import BRANCH_TYPES, ConvShape
from ..reparam import Kernel, sum_kernels


class Reader(NamedTuple):
    """How a library names the parts of its block.

    Attributes:
        library: whose block it is.
        convs: convolutions with a norm behind each, or lists of these.
        norm: batch norm alone.
        fused: the fused convolution.
        flag: is True once the block is fused.
    """

    library: str
    convs: tuple[str, ...]
    norm: str
    fused: str
    flag: str

    def knows(self, module: nn.Module) -> bool:
        return all(hasattr(module, name) for name in (*self.convs, self.norm))


READERS = (
    Reader("mmpretrain's MobileOne", ('branch_conv_list', 'branch_scale'), 'branch_norm', 'branch_reparam', 'deploy'),
    Reader("mmpretrain's RepVGG", ('branch_3x3', 'branch_1x1'), 'branch_norm', 'branch_reparam', 'deploy'),
    Reader("Apple's MobileOne", ('rbr_conv', 'rbr_scale'), 'rbr_skip', 'reparam_conv', 'inference_mode'),
    Reader("timm's MobileOne", ('conv_kxk', 'conv_scale'), 'identity', 'reparam_conv', 'inference_mode'),
    Reader("timm's RepVGG", ('conv_kxk', 'conv_1x1'), 'identity', 'reparam_conv', 'inference_mode'),
)


class ConvNorm(NamedTuple):
    """A branch as ``ConvBN`` of branches.py takes it."""

    conv: nn.Conv2d
    norm: nn.Module


class Block:
    """A block in some network: what its branches sum up to, and how that takes their place.

    Args:
        reader: of its library; None for a block of ours.

    Attributes:
        kind: whose block it is, and how many branches it has.

    Raises:
        ValueError: for a branch that is no convolution with batch norm of running statistics behind it, and see
            :meth:`MobileOneBlock.exact_kernel`.
    """

    def __init__(self, module: Any, reader: Reader | None):
        self.reader = reader
        if reader is None:
            self.kernel, branches, library = module.exact_kernel(), module.branches(), 'ours'
        else:
            branches, library = [*_branches(module, reader)], reader.library
            self.conv = conv = _fused_conv(branches)
            size, stride, dilation = conv.kernel_size[0], conv.stride[0], conv.dilation[0]
            shape = ConvShape(conv.in_channels, conv.out_channels, size, stride, dilation, conv.groups)
            self.kernel = sum_kernels(BRANCH_TYPES[kind].kernel(branch, shape) for kind, branch in branches)
        self.kind = f'{library}, {len(branches)} branch{"es" if len(branches) > 1 else ""}'

    def switch(self, module: Any) -> None:
        """Fuse ``module``, the block or a copy of it in another type, which keeps its type, place and trainability."""
        if self.reader is None:
            return module.switch_to_deploy(self.kernel)
        names = [name for name in (*self.reader.convs, self.reader.norm) if hasattr(module, name)]
        old = [p for name in names if getattr(module, name) is not None for p in getattr(module, name).parameters()]
        conv = copy.deepcopy(self.conv)
        conv.load_state_dict(Kernel(*(tensor.to(old[0]) for tensor in self.kernel))._asdict(), assign=True)
        conv.train(module.training).requires_grad_(any(parameter.requires_grad for parameter in old))
        for name in names:
            delattr(module, name)
        setattr(module, self.reader.fused, conv)
        setattr(module, self.reader.flag, True)


def read(module: nn.Module) -> Block | None:
    """The block that ``module`` is; None if it is none that is known, or fused already.

    Raises:
        ValueError: see :class:`Block`.
    """
    if isinstance(module, MobileOneBlock):
        ours = type(module).switch_to_deploy is MobileOneBlock.switch_to_deploy
        return Block(module, None) if ours and not module.deploy else None
    reader = next((reader for reader in READERS if reader.knows(module)), None)
    return Block(module, reader) if reader else None


def is_fused(module: nn.Module) -> bool:
    """Whether ``module`` is a block that has been fused."""
    return any(isinstance(getattr(module, reader.fused, None), nn.Conv2d) for reader in READERS)


def conv_norm(branch: nn.Module) -> ConvNorm | None:
    """A convolution and the norm behind it, if these are all that ``branch`` holds."""
    parts = [part for part in branch.children() if not isinstance(part, nn.Identity)]
    is_pair = len(parts) == 2 and isinstance(parts[0], nn.Conv2d) and hasattr(parts[1], 'eps')
    return ConvNorm(parts[0], parts[1]) if is_pair else None  # type: ignore[arg-type]


def _branches(module: nn.Module, reader: Reader) -> Iterator[tuple[str, Any]]:
    """The branches of a block and their types in branches.py."""
    for name in reader.convs:
        held = getattr(module, name)
        named = held.named_children() if isinstance(held, nn.ModuleList) else [('', held)] if held else []
        for index, branch in named:
            pair = conv_norm(branch)
            if pair is None:
                place = f'{name}.{index}' if index else name
                parts = ', '.join(type(part).__name__ for part in branch.children())
                raise ValueError(f'{place}: holds {parts or "nothing"}, where a convolution and its norm are known')
            yield 'ConvBN', pair
    norm = getattr(module, reader.norm)
    if norm is not None:
        yield 'SkipBN', norm


def _fused_conv(branches: list[tuple[str, Any]]) -> nn.Conv2d:
    """The convolution of all branches, without values: like the largest, or one of each pixel for a norm alone."""
    convs = [branch.conv for kind, branch in branches if kind == 'ConvBN']
    if not convs:
        channels = branches[0][1].num_features
        return nn.Conv2d(channels, channels, 1, groups=channels, device='meta')
    names = 'in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups', 'padding_mode'
    largest = max(convs, key=lambda conv: conv.kernel_size)
    return nn.Conv2d(**{name: getattr(largest, name) for name in names}, device='meta')
