"""Whether branches are what they were built as, and nobody else looks or reaches in.

Moments read the parameters of a branch and never call its modules. Whatever changes what a branch computes, or wants
to see it compute (hooks, parametrizations, pruning, quantization-aware training, adapters, tracers), needs the
branches themselves. So the answer is no to everything that is not known to be plain: exact classes, tensors
and methods. Every function returns why not, or None.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module
from torch.utils._device import DeviceContext

# Batch norms that only check their input in ways of their own; others may add theirs.
PLAIN_NORMS = {nn.BatchNorm2d, nn.SyncBatchNorm}

_TENSORS = (nn.Parameter, Tensor)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_SIMPLE = (bool, int, float, str, tuple, type(None))
_FREE = ('training', 'eps', 'momentum')  # attributes that moments read anew each time


def _methods() -> tuple:
    """What a branch's call runs, which a profiler may have replaced for all modules."""
    classes = nn.Module, nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm
    functions = nn.Conv2d._conv_forward, nn.functional.conv2d, nn.functional.batch_norm
    return *((kind.__call__, kind.forward) for kind in classes), *functions


_METHODS = _methods()


def process_obstacle() -> str | None:
    """Why no module of this process is plain: hooks for all modules, or methods replaced for all."""
    if nn_module._has_any_global_hook():
        return 'there are hooks for all modules'
    if _methods() != _METHODS:
        return 'methods of torch.nn are replaced'
    return None


def input_obstacle(x: Tensor) -> str | None:
    """Why what happens to ``x`` is not a plain computation: somebody traces, transforms or intercepts it."""
    if type(x) not in _TENSORS or x.layout is not torch.strided or x.is_meta:
        return f'the input is no plain tensor with values ({type(x).__name__})'
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return 'it is traced'
    if torch.compiler.is_compiling():  # then torch.compile follows every line; below is what it cannot meet
        return None
    if torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0:
        return 'a transform of torch.func or forward-mode derivatives are on'
    if torch._C._len_torch_dispatch_stack():
        return 'a dispatch mode is on'
    depth = torch._C._len_torch_function_stack()
    if any(type(torch._C._get_function_stack_at(i)) is not DeviceContext for i in range(depth)):
        return 'a function mode is on'
    return None


class Signature(NamedTuple):
    """A module of a branch as it was built: its class, what its instance says, and the shapes of its tensors."""

    kind: type
    names: frozenset[str]
    attributes: dict[str, Any]
    shapes: dict[str, tuple[int, ...] | None]


def signatures(branch: nn.Module) -> dict[str, Signature]:
    """Of every module of a branch, by name."""
    return {name: _signature(module) for name, module in branch.named_modules()}


def _signature(module: nn.Module) -> Signature:
    own = module.__dict__
    attributes = {name: own[name] for name in simple_attributes(own) if name not in _FREE}
    shapes = {name: None if tensor is None else tuple(tensor.shape) for name, tensor in _tensors(module).items()}
    return Signature(type(module), frozenset(own), attributes, shapes)


def simple_attributes(own: dict[str, Any]) -> list[str]:
    """Names of the numbers, words and tuples that an instance has of its own, ``training`` among them."""
    return [name for name, value in own.items() if type(value) in _SIMPLE and name[0] != '_']


def _tensors(module: nn.Module) -> dict[str, Tensor | None]:
    return {**module._parameters, **module._buffers}


def branch_obstacle(branch: nn.Module, built: dict[str, Signature]) -> str | None:
    """What of ``branch`` is not as it was when :func:`signatures` looked at it; more of the same class is."""
    modules = dict(branch.named_modules())
    if modules.keys() != built.keys():
        return f'it is {type(branch).__name__} of {", ".join(modules) or "nothing"} instead of {", ".join(built)}'
    for name, module in modules.items():
        obstacle = _module_obstacle(module, built[name])
        if obstacle:
            return f'{name}: {obstacle}' if name else obstacle
    return None


def _module_obstacle(module: nn.Module, built: Signature) -> str | None:
    kind, own = type(module), module.__dict__
    if kind is not built.kind and not {kind, built.kind} <= PLAIN_NORMS:
        return f'it is {kind.__name__} instead of {built.kind.__name__}'
    if own['_forward_hooks'] or own['_forward_pre_hooks'] or own['_backward_hooks'] or own['_backward_pre_hooks']:
        return 'it has hooks'
    replaced = (own.keys() - built.names) & (_class_names(kind) | built.shapes.keys() | own['_modules'].keys())
    if replaced:
        return f'{min(replaced)} is replaced'
    for name, value in built.attributes.items():
        if type(own.get(name)) is not type(value) or own[name] != value:
            return f'{name}={own.get(name)!r} instead of {value!r}'
    tensors = _tensors(module)
    if tensors.keys() != built.shapes.keys():
        return f'it has {", ".join(tensors)} instead of {", ".join(built.shapes)}'
    for name, shape in built.shapes.items():
        obstacle = _tensor_obstacle(tensors[name], shape)
        if obstacle:
            return f'{name}: {obstacle}'
    if kind in PLAIN_NORMS and not (type(own['eps']) in (float, int) and type(own['momentum']) in _SIMPLE):
        return f'eps={own["eps"]!r}, momentum={own["momentum"]!r} instead of numbers'
    return None


def _tensor_obstacle(tensor: Any, shape: tuple | None) -> str | None:
    if tensor is None or shape is None:
        return None if tensor is shape else f'{tensor if tensor is None else "a tensor"} instead of {shape}'
    if type(tensor) not in _TENSORS or tensor.layout is not torch.strided:
        return f'a {type(tensor).__name__} instead of a plain tensor'
    if tensor.is_floating_point() and tensor.dtype not in _DTYPES:
        return f'of type {tensor.dtype}'
    return None if tensor.shape == shape else f'shape {tuple(tensor.shape)} instead of {shape}'


def norm_obstacle(norm: nn.Module) -> str | None:
    """``norm`` must be batch norm with affine parameters and running statistics."""
    if type(norm) not in PLAIN_NORMS:
        return f'{type(norm).__name__} is not plain batch norm'
    if not norm.track_running_stats or any(tensor is None for tensor in _tensors(norm).values()):
        return 'its batch norm lacks affine parameters or running statistics'
    return None


@cache
def _class_names(kind: type) -> frozenset[str]:
    """What an attribute of an instance would stand before."""
    return frozenset(dir(kind))
