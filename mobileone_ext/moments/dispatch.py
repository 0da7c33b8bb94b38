"""Whether a block's training forward goes by moments or by its branches, decided once for a kind of input.

A decision looks at every module of every branch. It holds until ``forget``, which ``train()`` and whatever moves the
block call, or until the block is seen to be another than it was decided for: identities are compared at each call.
What can change between two calls of the same block (global hooks, tracers, modes of torch) is asked each time.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..branches import BRANCH_TYPES
from .autotune import is_faster
from .guard import HOOKS, is_plain_input, is_plain_norm, is_plain_process, simple_attributes
from .kernels import constant_when_compiled
from .linears import Linears, collect
from .patches import count_patches
from .statistics import is_covered, one_kernel

# The order in which moments take the branches: kernels first, then what only weighs pixels.
SLOTS = ('branch_conv_list', 'branch_list', 'branch_scale', 'branch_norm')


class Dispatcher:
    """The decisions of one block; a copy of the block begins without any."""

    def __init__(self):
        self.forget()

    def forget(self) -> None:
        self._choices: dict[tuple, bool] = {}
        self._modules: list[nn.Module] = []
        self._linears: Linears | None = None

    def takes_moments(self, block: Any, x: Tensor) -> bool:
        """Whether ``block`` computes its training forward of ``x`` by moments."""
        if block.train_impl == 'branches' or not block.training or not is_plain_input(x):
            return False
        if torch.compiler.is_compiling():
            facts = _facts_when_compiled(block)
            return facts is not None and _suits(block, x, *facts)
        if not is_plain_process():
            return False
        if not self._modules or not self._unchanged():
            self._watch(block)
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        device = x.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        kind = block.train_impl, x.shape, x.dtype, x.device, channels_last, autocast
        if kind not in self._choices:
            self._choices[kind] = not branches_reason(block) and _suits(block, x, *_facts(block))
        return self._choices[kind]

    def _watch(self, block: Any) -> None:
        self.forget()
        self._modules = [block, *chain.from_iterable(branch.modules() for branch in block.branches())]
        own = [module.__dict__ for module in self._modules]
        self._dicts = [part for each in own for part in (each, *[each[hooks] for hooks in HOOKS])]
        self._held = [each[part] for each in own for part in ('_parameters', '_buffers', '_modules')]
        self._tensors = [p for each in own for p in each['_parameters'].values() if p is not None]
        self._simple = [(itemgetter(*simple_attributes(each)), each) for each in own]
        self._seen = self._looks()

    def linears(self, block: Any) -> Linears:
        """What moments need of the block: collected once, but for weights that a branch computes."""
        if torch.compiler.is_compiling():
            return _collected(block, _in_order(block))
        if self._linears is None:
            branches = _in_order(block)
            self._linears = _collected(block, branches)
            parameters = {id(tensor) for tensor in self._tensors}
            weights = self._linears.tensors[: len(branches)]
            kept = [weight is None or id(weight) in parameters for weight in weights]
            self._computed = [(i, each) for i, each in enumerate(branches) if not kept[i]]
        if not self._computed:
            return self._linears
        tensors = [*self._linears.tensors]
        for index, each in self._computed:
            tensors[index] = _linear(block, *each)[0]
        return replace(self._linears, tensors=tensors)

    def _unchanged(self) -> bool:
        try:
            return self._looks() == self._seen
        except KeyError:  # an attribute is gone
            return False

    def _looks(self) -> list:
        """What says that classes, hooks, methods, attributes, children, tensors and their types are the same ones.

        It is asked for each forward of each block, so it loops in C where it can.
        """
        return [
            *map(type, self._modules),
            *map(len, self._dicts),
            *[get(own) for get, own in self._simple],
            *map(id, chain.from_iterable(map(dict.values, self._held))),
            *[tensor.dtype for tensor in self._tensors],
        ]

    def __deepcopy__(self, memo: dict) -> 'Dispatcher':
        return Dispatcher()

    def __reduce__(self) -> tuple:
        return Dispatcher, ()


def moments_reason(block: Any) -> str | None:
    """Why a block can only train by its branches; None if it can do otherwise."""
    return branches_reason(block) if is_plain_process() else 'hooks or methods of torch.nn are set for all modules'


def branches_reason(block: Any) -> str | None:
    """What of the block itself keeps it from moments."""
    if block.deploy:
        return 'it is fused'
    if not is_covered(*block.shape):
        return 'only dense convolutions and depthwise 3x3 ones at stride 1 or 2 are covered, without dilation'
    change = block.change()
    if change:
        return change
    linears = []
    for name, kind, branch in block.typed_branches(SLOTS):
        linear = BRANCH_TYPES[kind].linear(branch, block.shape)
        if linear is None or not is_plain_norm(linear[1]):
            return f'{name}: it is not linear up to a last batch norm with affine parameters and running statistics'
        linears.append(linear)
    if all(_is_pixel(weight, block) for weight, _ in linears):
        return 'it has no convolution of full size'
    if len({(type(norm), id(norm.__dict__.get('process_group'))) for _, norm in linears}) > 1:
        return 'its batch norms are of different classes or process groups'
    return None


def _facts(block: Any) -> tuple[bool, tuple[torch.dtype, ...], tuple[torch.dtype, ...]]:
    """Of a block that moments can take: whether its norms train, and the types of its weights and of its norms'."""
    norms: list[Any] = [_linear(block, kind, branch)[1] for _, kind, branch in block.typed_branches(SLOTS)]
    weights = {p.dtype for branch in block.branches() for p in branch.parameters() if p.dim() > 1}
    return all(norm.training for norm in norms), tuple(weights), tuple({norm.weight.dtype for norm in norms})


@constant_when_compiled
def _facts_when_compiled(block: Any) -> tuple | None:
    """``_facts``, or None for a block that takes its branches; looked at once, when a network is compiled."""
    return None if moments_reason(block) else _facts(block)


def _suits(block: Any, x: Tensor, norms_train: bool, dtypes: Sequence, norm_dtypes: Sequence) -> bool:
    """Whether moments know what to do with ``x``, and are not slower."""
    # Wrong shapes, types and single values: their error is for the branches to raise.
    if x.dim() != 4 or x.shape[1] != block.in_channels or count_patches(x, block.stride) < 2 or not norms_train:
        return False
    if block.train_impl == 'auto':
        branches = len(block.branch_conv_list) + len(block.branch_list)
        geometry = block.kernel_size, block.stride, block.groups, block.out_channels
        if not is_faster(x, *geometry, branches, block.branch_norm is not None):
            return False
    # What mixtures of types torch takes, and what it makes of them, the branches show.
    if torch.is_autocast_enabled(x.device.type):
        return len(dtypes) == 1
    allowed = (x.dtype,) if x.dtype == torch.float64 else (x.dtype, torch.float32)
    return tuple(dtypes) == (x.dtype,) and all(dtype in allowed for dtype in norm_dtypes)


def one_convolution(block: Any, x: Tensor) -> Tensor:
    """The sum of the branches in training mode, and the same change of their running statistics."""
    x, (weight, bias) = one_kernel(x, block._dispatcher.linears(block))
    if weight.dtype != x.dtype:
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    return F.conv2d(x, weight, bias, block.stride, block.kernel_size // 2, groups=block.groups)


def _in_order(block: Any) -> list[tuple[str, nn.Module]]:
    """Type and module of every branch of a block that moments take; those with kernels come first."""
    branches = [(kind, branch) for _, kind, branch in block.typed_branches(SLOTS)]
    return sorted(branches, key=lambda each: _is_pixel(_linear(block, *each)[0], block))


def _collected(block: Any, branches: Sequence[tuple[str, nn.Module]]) -> Linears:
    return collect([_linear(block, *each) for each in branches], block.stride, block.groups)


def _linear(block: Any, kind: str, branch: nn.Module) -> tuple[Tensor | None, nn.Module]:
    """The kernel before the norm, and the norm."""
    linear = BRANCH_TYPES[kind].linear(branch, block.shape)
    assert linear is not None
    return linear


def _is_pixel(weight: Tensor | None, block: Any) -> bool:
    """Whether it weighs the pixel under the center: (O,), or (O, 1, 1, 1) beside larger kernels, or None for ones."""
    return weight is None or weight.dim() == 1 or weight.shape[-1] != block.kernel_size
