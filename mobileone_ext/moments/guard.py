"""Whether branches are what moments take them for: a convolution, then batch norm, and nobody else.

Moments read the parameters of a branch and never call its modules. Whatever changes what a branch computes, or wants
to see it compute (hooks, parametrizations, pruning, quantization-aware training, adapters, tracers), needs the
branches themselves. So the answer is no to everything that is not known to be plain: exact classes, tensors
and methods. Every function returns why not, or None.
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

_TENSORS = (nn.Parameter, Tensor)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


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


def sequence_obstacle(branch: nn.Module, shape: tuple, geometry: dict) -> str | None:
    """``branch`` must be a convolution with a kernel of ``shape`` and these attributes, then batch norm."""
    obstacle = _module_obstacle(branch, nn.Sequential)
    if obstacle:
        return obstacle
    if [*branch._modules] != _SEQUENCE:
        return f'it consists of {", ".join(branch._modules)} instead of conv, norm'
    conv = branch._modules['conv']
    obstacle = _module_obstacle(conv, nn.Conv2d)
    if obstacle:
        return f'conv: {obstacle}'
    if conv._parameters.keys() != _CONV_PARAMETERS or conv._parameters['bias'] is not None:
        return 'conv: it has other parameters than a weight'
    obstacle = _tensor_obstacle(conv._parameters['weight'], shape)
    if obstacle:
        return f'conv: weight: {obstacle}'
    attributes = conv.__dict__
    for name, value in geometry.items():
        if attributes[name] != value:
            return f'conv: {name}={attributes[name]!r} instead of {value!r}'
    obstacle = norm_obstacle(branch._modules['norm'], shape[0])
    return f'norm: {obstacle}' if obstacle else None


def norm_obstacle(norm: nn.Module | None, channels: int) -> str | None:
    """``norm`` must be batch norm with affine parameters and running statistics."""
    kind = type(norm)
    if kind not in PLAIN_NORMS:
        return f'{kind.__name__} is not plain batch norm'
    obstacle = _module_obstacle(norm, kind)
    if obstacle:
        return obstacle
    attributes, parameters, buffers = norm.__dict__, norm._parameters, norm._buffers
    if parameters.keys() != _NORM_PARAMETERS or buffers.keys() != _NORM_BUFFERS:
        return 'it has other parameters or buffers than batch norm'
    tensors = parameters['weight'], parameters['bias'], buffers['running_mean'], buffers['running_var']
    if not attributes['track_running_stats']:
        return 'it keeps no running statistics'
    for tensor in tensors:
        obstacle = _tensor_obstacle(tensor, (channels,))
        if obstacle:
            return obstacle
    if type(buffers['num_batches_tracked']) not in _TENSORS:
        return 'it counts no batches'
    if type(attributes['eps']) not in _NUMBERS or type(attributes['momentum']) not in _NUMBERS_OR_NONE:
        return f'eps={norm.eps!r}, momentum={norm.momentum!r} instead of numbers'
    return None


_SEQUENCE = ['conv', 'norm']
_CONV_PARAMETERS = {'weight', 'bias'}
_NORM_PARAMETERS = {'weight', 'bias'}
_NORM_BUFFERS = {'running_mean', 'running_var', 'num_batches_tracked'}
_NUMBERS = (float, int)
_NUMBERS_OR_NONE = (float, int, type(None))


def _module_obstacle(module: nn.Module | None, kind: type) -> str | None:
    if type(module) is not kind:
        return f'it is {type(module).__name__} instead of {kind.__name__}'
    own = module.__dict__
    if own['_forward_hooks'] or own['_forward_pre_hooks'] or own['_backward_hooks'] or own['_backward_pre_hooks']:
        return 'it has hooks'
    if len(own) != _NUM_ATTRIBUTES.get(kind):  # something was added, perhaps of no matter
        replaced = _read_from_class(kind).intersection(own)  # type: ignore[arg-type]
        if replaced:
            return f'{sorted(replaced)[0]} is replaced'
    if own['_modules'] and kind is not nn.Sequential:
        return f'it holds {next(iter(own["_modules"]))}'
    return None


def _tensor_obstacle(tensor: Any, shape: tuple) -> str | None:
    if type(tensor) not in _TENSORS or tensor.layout is not torch.strided or tensor.dtype not in _DTYPES:
        return f'a {type(tensor).__name__} instead of a plain tensor'
    return None if tensor.shape == shape else f'shape {tuple(tensor.shape)} instead of {shape}'


def _num_attributes() -> dict[type, int]:
    """How many attributes a new module has of its own."""
    with torch.device('meta'):  # draws no random numbers
        modules = nn.Sequential(), nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.SyncBatchNorm(1)
    return {type(module): len(module.__dict__) for module in modules}


_NUM_ATTRIBUTES = _num_attributes()


@cache
def _read_from_class(kind: type) -> frozenset[str]:
    """Names that a ``kind`` reads from its class, or its parameters and children, unless an instance has its own."""
    return frozenset(dir(kind)) - nn.Module().__dict__.keys() | _NORM_PARAMETERS | _NORM_BUFFERS | set(_SEQUENCE)
