"""Whether branches are what they were built as, and nobody else looks or reaches in.

Moments read the parameters of a branch and never call its modules. Whatever changes what a branch computes, or wants
to see it compute (hooks, parametrizations, pruning, quantization-aware training, adapters, tracers), needs the
branches themselves. So moments take what is known to be plain and nothing else: a branch is described when it is built,
by exact classes, tensors, attributes and hooks, and has to be described so still.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module
from torch.utils._device import DeviceContext

# Batch norms that only check their input in ways of their own; others may add theirs.
PLAIN_NORMS = {nn.BatchNorm2d, nn.SyncBatchNorm}
HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')

_TENSORS = (nn.Parameter, Tensor)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.long)  # the last: of a norm's count
_SIMPLE = (bool, int, float, str, tuple, type(None))
_FREE = ('training', 'eps', 'momentum')  # attributes that moments read anew each time


def _methods() -> tuple:
    """What a branch's call runs, which a profiler may have replaced for all modules."""
    classes = nn.Module, nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm
    functions = nn.Conv2d._conv_forward, nn.functional.conv2d, nn.functional.batch_norm
    return *((kind.__call__, kind.forward) for kind in classes), *functions


_METHODS = _methods()


def is_plain_process() -> bool:
    """Whether no module of this process has hooks that are for all of them, or methods replaced for all."""
    return not nn_module._has_any_global_hook() and _methods() == _METHODS


def is_plain_input(x: Tensor) -> bool:
    """Whether what happens to ``x`` is a plain computation: nobody traces, transforms or intercepts it."""
    if type(x) not in _TENSORS or x.layout is not torch.strided or x.is_meta:
        return False
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    if torch.compiler.is_compiling():  # then torch.compile follows every line; below is what it cannot meet
        return True
    if torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0:
        return False
    depth = torch._C._len_torch_function_stack()
    modes = [torch._C._get_function_stack_at(i) for i in range(depth)]
    return not torch._C._len_torch_dispatch_stack() and all(type(mode) is DeviceContext for mode in modes)


def is_plain_norm(norm: nn.Module) -> bool:
    """Whether ``norm`` is batch norm with affine parameters and running statistics."""
    if type(norm) not in PLAIN_NORMS or not {type(norm.eps), type(norm.momentum)} <= {*_SIMPLE}:
        return False
    return bool(norm.track_running_stats) and all(tensor is not None for tensor in _tensors(norm).values())


def description(branch: nn.Module) -> dict[str, Any]:
    """What decides what a branch computes, by module and property; more branches of the same kind have the same."""
    return {
        f'{name}.{key}' if name else key: value
        for name, module in branch.named_modules()
        for key, value in _properties(module).items()
    }


def _properties(module: nn.Module) -> dict[str, Any]:
    kind, own, tensors = type(module), module.__dict__, _tensors(module)
    hidden = own.keys() & (_class_names(kind) | tensors.keys() | own['_modules'].keys())
    properties = {name: own[name] for name in simple_attributes(own) if name not in _FREE}
    properties['class'] = nn.BatchNorm2d if kind in PLAIN_NORMS else kind
    properties['own methods'] = sorted(hidden)  # and whatever else of an instance stands before its class's
    properties['modules'] = [*own['_modules']]
    properties['tensors'] = {name: None if tensor is None else [*tensor.shape] for name, tensor in tensors.items()}
    return properties


def simple_attributes(own: dict[str, Any]) -> list[str]:
    """Names of the numbers, words and tuples that an instance has of its own, ``training`` among them."""
    return [name for name, value in own.items() if type(value) in _SIMPLE and name[0] != '_']


def _tensors(module: nn.Module) -> dict[str, Tensor | None]:
    return {**module._parameters, **module._buffers}


def _is_plain_tensor(tensor: Tensor | None) -> bool:
    if tensor is None:
        return True
    return type(tensor) in _TENSORS and tensor.layout is torch.strided and tensor.dtype in _DTYPES


def difference(branch: nn.Module, built: dict[str, Any]) -> str | None:
    """What tells ``branch`` from a plain one with the description ``built``; None if nothing does."""
    for name, module in branch.named_modules():
        if any(module.__dict__[hooks] for hooks in HOOKS):
            return f'{name or "it"} has hooks'
        if not all(_is_plain_tensor(tensor) for tensor in _tensors(module).values()):
            return f'{name or "it"} has tensors of another kind'
    current = description(branch)
    for key, value in built.items():
        if current.get(key) != value:
            return f'{key}: {current.get(key)} instead of {value}'
    return None


@cache
def _class_names(kind: type) -> frozenset[str]:
    """What an attribute of an instance would stand before."""
    return frozenset(dir(kind))
