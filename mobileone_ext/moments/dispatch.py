"""Whether a block's training forward goes by moments or by its branches, decided once for a kind of input, and the former.

A decision looks at every module of every branch. It holds until ``forget``, which ``train()`` and whatever moves the
block call, or until the block is seen to be another than it was decided for: identities are compared at each call.
What can change between two calls of the same block (global hooks, tracers, modes of torch) is asked each time.
"""

from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..branches import BRANCH_TYPES
from .autotune import is_faster
from .guard import branch_obstacle, input_obstacle, norm_obstacle, process_obstacle
from .patches import count_patches
from .statistics import batch_kernel, batch_statistics, is_covered, pool_processes

# The order in which moments take the branches: kernels first, then what only weighs pixels.
SLOTS = ('branch_conv_list', 'branch_list', 'branch_scale', 'branch_norm')


class Dispatcher:
    """The decisions of one block; a copy of the block begins without any."""

    def __init__(self):
        self.forget()

    def forget(self) -> None:
        self._choices: dict[tuple, bool] = {}
        self._modules: list[nn.Module] = []
        self._seen: list[Any] = []

    def takes_moments(self, block: Any, x: Tensor) -> bool:
        """Whether ``block`` computes its training forward of ``x`` by moments."""
        if block.train_impl == 'branches' or not block.training or input_obstacle(x):
            return False
        if torch.compiler.is_compiling():
            return not moments_obstacle(block) and _suits(block, x)
        if process_obstacle():
            return False
        if _identities(self._modules) != self._seen:
            self.forget()
        if not self._seen:
            self._modules = [block, *chain.from_iterable(branch.modules() for branch in block.branches())]
            self._seen = _identities(self._modules)
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        device = x.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        kind = block.train_impl, x.shape, x.dtype, x.device, channels_last, autocast
        if kind not in self._choices:
            self._choices[kind] = not branches_obstacle(block) and _suits(block, x)
        return self._choices[kind]

    def __deepcopy__(self, memo: dict) -> 'Dispatcher':
        return Dispatcher()

    def __reduce__(self) -> tuple:
        return Dispatcher, ()


def _identities(modules: list[nn.Module]) -> list[Any]:
    """What a change of these modules would change: hooks, classes, attributes, methods, parameters and their types."""
    seen: list[Any] = []
    for module in modules:
        own = module.__dict__
        hooks = own['_forward_hooks'], own['_forward_pre_hooks'], own['_backward_hooks'], own['_backward_pre_hooks']
        seen += type(module), *map(len, hooks)
        for part in (own, own['_parameters'], own['_buffers'], own['_modules']):
            seen += map(id, part.values())
        seen += [tensor.dtype for tensor in own['_parameters'].values() if tensor is not None]
    return seen


def moments_obstacle(block: Any) -> str | None:
    """Why a block can only train by its branches; None if it can do otherwise."""
    return process_obstacle() or branches_obstacle(block)


def branches_obstacle(block: Any) -> str | None:
    """What of the block itself keeps it from moments."""
    if block.deploy:
        return 'it is fused'
    if not is_covered(*block.shape):
        return 'only dense convolutions and depthwise 3x3 ones at stride 1 or 2 are covered, without dilation'
    obstacle = block.change()
    if obstacle:
        return obstacle
    norms, has_kernel = [], False
    for name, kind, branch in block.typed_branches(SLOTS):
        # A norm without weights: a type's kernel may be laid out after them.
        linear = norm_obstacle(branch) is None or not isinstance(branch, nn.modules.batchnorm._BatchNorm)
        linear = BRANCH_TYPES[kind].linear(branch, block.shape) if linear else None
        if linear is None:
            return f'{name}: {kind} is not linear before its last norm, or that norm is not plain'
        kernel, norm = linear
        obstacle = norm_obstacle(norm)
        if obstacle:
            return f'{name}: {obstacle}'
        has_kernel = has_kernel or kernel.dim() == 4
        norms.append(norm)
    if not has_kernel:
        return 'it has no convolution of full size'
    if len({(type(norm), id(norm.__dict__.get('process_group'))) for norm in norms}) > 1:
        return 'its batch norms are of different classes or process groups'
    return None


def _suits(block: Any, x: Tensor) -> bool:
    """Whether moments know what to do with ``x``, and are not slower."""
    # Wrong shapes, types and single values: their error is for the branches to raise.
    if x.dim() != 4 or x.shape[1] != block.in_channels or count_patches(x, block.stride) < 2:
        return False
    linears = [BRANCH_TYPES[kind].linear(branch, block.shape) for _, kind, branch in block.typed_branches(SLOTS)]
    norms = [norm for _, norm in linears]
    if block.train_impl == 'auto':
        branches = len(block.branch_conv_list) + len(block.branch_list)
        geometry = block.kernel_size, block.stride, block.groups, block.out_channels
        if not is_faster(x, *geometry, branches, block.branch_norm is not None):
            return False
    if not all(norm.training for norm in norms):
        return False
    # What mixtures of types torch takes, and what it makes of them, the branches show.
    dtypes = {p.dtype for branch in block.branches() for p in branch.parameters() if p.dim() > 1}
    if torch.is_autocast_enabled(x.device.type):
        return len(dtypes) == 1
    norm_dtypes = {x.dtype} if x.dtype == torch.float64 else {x.dtype, torch.float32}
    return dtypes == {x.dtype} and {norm.weight.dtype for norm in norms} <= norm_dtypes


def one_convolution(block: Any, x: Tensor) -> Tensor:
    """The sum of the branches in training mode, and the same change of their running statistics."""
    kernels, kernel_norms, pixels, pixel_norms = [], [], [], []
    for _, kind, branch in block.typed_branches(SLOTS):
        weight, norm = BRANCH_TYPES[kind].linear(branch, block.shape)
        (kernels if weight.dim() == 4 else pixels).append(weight)
        (kernel_norms if weight.dim() == 4 else pixel_norms).append(norm)
    norms = kernel_norms + pixel_norms
    weights = torch.stack(kernels)
    x, statistics = batch_statistics(x, weights, block.stride, block.groups)
    if isinstance(norms[0], nn.SyncBatchNorm) and dist.is_initialized():
        statistics = pool_processes(statistics, norms[0].process_group)
    with torch.autocast(x.device.type, enabled=False):
        weight, bias = batch_kernel(weights, pixels, statistics, norms)
        # Laid out as the branches' kernels, which stacking has lost: an NCHW image convolved with an NHWC kernel
        # becomes an NHWC map, and so do those of all further blocks.
        weight = torch.empty_like(kernels[0], dtype=weight.dtype).copy_(weight)
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    return F.conv2d(x, weight, bias, block.stride, block.kernel_size // 2, groups=block.groups)


