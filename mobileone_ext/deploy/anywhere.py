"""Any network with re-parameterizable blocks, fused in place and held against what it was.

What blocks.py reads is fused by the algebra of reparam.py; any other module that has a fuse method of its own
(``switch_to_deploy``, ``reparameterize`` or ``fuse``) by that. Either way the network before and the network after
compute the same images in float64, and so does every single module that was fused: one with a small weight in a sum
would hide its fault in the outputs. Torch alone.
"""

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..text import abbreviate, one_line
from . import runtime
from .blocks import Block, conv_norm, is_fused, read

# Relative to the largest output. Rounding the fused weights to float32 costs about 1e-6 for any variant.
FUSION_TOLERANCE = 1e-4
OWN_METHODS = ('switch_to_deploy', 'reparameterize', 'fuse')
_NAMED = 5


@dataclass
class Report:
    """What was fused, and how far the network's outputs lie from what they were.

    Attributes:
        fused: by module: whose block it is and how many branches it had, or the method of its own that fused it.
        unknown: by module: what looks like a block and was left as it is, and why.
        inputs: what both networks computed.
        difference: of the outputs, at most, relative to the largest value of an output.
    """

    fused: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    inputs: str = ''
    difference: float = 0.0

    def __str__(self) -> str:
        kinds = ', '.join(f'{count} x {kind}' for kind, count in Counter(self.fused.values()).items())
        lines = [
            f'{len(self.fused)} fused: {kinds or "none"}',
            f'on {self.inputs} outputs differ by {self.difference:.1e} of the largest',
            *(f'left as it is: {name}: {reason}' for name, reason in self.unknown.items()),
        ]
        return '\n'.join(lines)


def fuse(model: nn.Module, images: Any = None) -> Report:
    """Fuse all blocks of ``model`` in place, or none; whether it trains, and what of it does, stays as it is.

    Args:
        images: what it takes: a batch (N, C, H, W), a tuple of arguments, or a dict of named ones. None takes two
            images of noise, 64 x 64 pixels, with the channels of its first convolution.

    Raises:
        ValueError: if there is nothing to fuse, or a block that cannot be, or the fused network computes something
            else; the model is as it was.
    """
    report = fuse_blocks(model, images)
    if not report.fused:
        known = 'all blocks are fused already' if any(map(is_fused, model.modules())) else 'no block that is known'
        alike = [f'{name or "all of it"} ({reason})' for name, reason in report.unknown.items()]
        raise ValueError(f'nothing to fuse: {known}{"; left as it is: " + abbreviate(alike, _NAMED) if alike else ""}')
    return report


@torch.no_grad()
def fuse_blocks(model: nn.Module, images: Any = None) -> Report:
    """What :func:`fuse` does; a model without anything to fuse stays as it is."""
    dtype = check_values(model)
    report = Report()
    before = copy.deepcopy(model).double()
    inputs: dict[str, int] = {}  # which object each module took; a parent's outlives the calls of what it holds
    images, report.inputs, expected = run_given(
        before, images, lambda name, args, *_: inputs.update({name: id(args[0]) if args else 0})
    )

    steps: dict[str, Block | str] = {}
    after = _fused('', copy.deepcopy(before), inputs, steps, report)
    _refuse_shared(before, report.fused)
    for name, module in before.named_modules():
        inside = any(f'{name}.'.startswith(f'{place}.') or not place for place in report.fused)
        if not inside and _has_parallel_branches(name, module, inputs):
            report.unknown[name] = f'{type(module).__name__} has parallel convolutions, by names that are not known'
    if not report.fused:
        return report

    def prove(name: str, args: tuple, kwargs: dict, outputs: Any) -> None:
        if name in report.fused:
            apart = relative_difference(before.get_submodule(name)(*args, **kwargs), outputs)
            if not apart <= FUSION_TOLERANCE:
                by = f'(by {apart:.1e} of the largest)'
                own = report.fused[name].startswith('its own')
                reason = (
                    f'{report.fused[name]} changes what it computes {by}'
                    if own
                    else f'it computes something else than its convolutions and norms say {by}: a hook, or another '
                    'module, stands between them'
                )
                raise ValueError(f'{name or "it"}: cannot be fused: {reason}')

    after.to(dtype).double()  # as its weights will be
    report.difference = relative_difference(expected, run(after, images, prove))
    if not report.difference <= FUSION_TOLERANCE:
        raise ValueError(f'the fusion is wrong: outputs differ by {report.difference:.1e} of the largest')
    for name, step in steps.items():
        if isinstance(step, Block):
            step.switch(model.get_submodule(name))
        elif name in report.fused:
            _put(model, name, after.get_submodule(name).to(dtype))
        else:
            getattr(model.get_submodule(name), step)()  # all in it is fused: it sets its flags
    return report


def _fused(name: str, module: nn.Module, inputs: Mapping[str, int], steps: dict, report: Report) -> nn.Module:
    """What stands in place of ``module``: itself with its blocks fused, or what a method of its own makes of it.

    Args:
        inputs: has a key for each module that images reach.
        steps: from the inside out, gets what was done: a block, or the name of a method.
    """
    try:
        block = read(module)
    except ValueError as error:
        raise ValueError(f'{name or "it"}: {error}') from error
    inside = f'{name}.' if name else ''
    method = next((method for method in OWN_METHODS if _takes_nothing(getattr(module, method, None))), '')
    if (block or method) and not any(f'{other}.'.startswith(inside) for other in inputs):
        report.unknown[name] = f'{type(module).__name__}: no image gets there'
    elif block:
        block.switch(module)
        steps[name], report.fused[name] = block, block.kind
    else:
        # Most methods pass over blocks that are fused; one that composes its blocks may need them as they were.
        original = copy.deepcopy(module) if method else module
        for child_name, child in list(module.named_children()):
            module._modules[child_name] = _fused(inside + child_name, child, inputs, steps, report)
        for candidate in (module, original) if method else ():
            try:
                result = copy.deepcopy(candidate)
                returned = getattr(result, method)()
                result = returned if isinstance(returned, nn.Module) else result
                if not name and type(result) is not type(module):
                    raise ValueError(f'it gives a {type(result).__name__}, which cannot take its place')
            except Exception as error:  # whatever somebody's method raises
                report.unknown[name] = f'{method}(): {type(error).__name__}: {one_line(error)}'
                continue
            report.unknown.pop(name, None)
            if candidate is original or result.state_dict().keys() != candidate.state_dict().keys():
                for found in (steps, report.fused):
                    for key in [key for key in found if key.startswith(inside)]:
                        del found[key]
                report.fused[name] = f'its own {method}()'
            steps[name] = method
            return result.double()
    return module


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where ``name`` of ``model`` is; what both hold trains as it did."""
    old = model.get_submodule(name)
    trains = {key: parameter.requires_grad for key, parameter in old.named_parameters()}
    modes = {key: part.training for key, part in old.named_modules()}
    for key, parameter in module.named_parameters():
        parameter.requires_grad_(trains.get(key, any(trains.values())))
    for key, part in module.named_modules():
        part.training = modes.get(key, old.training)
    if name:
        parent, _, last = name.rpartition('.')
        model.get_submodule(parent)._modules[last] = module
    else:
        vars(model).update(vars(module))


def _takes_nothing(method: Any) -> bool:
    """Whether ``method`` is one that can be called as it is."""
    given = inspect.signature(method).parameters.values() if inspect.ismethod(method) else None
    return given is not None and all(
        p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in given
    )


def check_values(model: nn.Module) -> torch.dtype:
    """The type of the weights.

    Raises:
        ValueError: for a network without values, or in half precision.
    """
    dtypes = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(f'{name} is on meta, it has no values: load the weights first')
        if tensor.is_floating_point():
            dtypes.setdefault(tensor.dtype, name)
    for dtype, name in dtypes.items():
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f'{name} is {dtype}: fuse in float32, model.float(), and make it half then')
    return next(iter(dtypes), torch.float32)


def _refuse_shared(model: nn.Module, fused: Iterable[str]) -> None:
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
    for names in (places[model.get_submodule(name)] for name in fused):
        if len(names) > 1:
            raise ValueError(f'{" and ".join(names)} are one block, which stands in {len(names)} places: copy it first')


def _has_parallel_branches(name: str, module: nn.Module, inputs: Mapping[str, int]) -> bool:
    """Whether convolutions with a norm, of one shape but for the kernel, take what ``module`` itself takes."""
    shapes: Counter = Counter()
    for key, child in module.named_children():
        listed = child.named_children() if isinstance(child, nn.ModuleList) else ()
        for place, branch in ((key, child), *((f'{key}.{index}', item) for index, item in listed)):
            pair = conv_norm(branch)
            if pair and name in inputs and inputs.get(f'{name}.{place}' if name else place) == inputs[name]:
                shapes[pair.conv.in_channels, pair.conv.out_channels, pair.conv.stride, pair.conv.groups] += 1
    return any(count > 1 for count in shapes.values())


def run_given(model: nn.Module, images: Any, hook: Callable[[str, tuple, dict, Any], None]) -> tuple[Any, str, Any]:
    """What :func:`run` takes, in words too, and gives of the network that others are held against; it is in eval mode.

    Args:
        images: as of :func:`fuse`.

    Raises:
        ValueError: if it does not take them, or its outputs are not finite.
    """
    inputs = 'noise of 64 x 64 pixels' if images is None else 'the images'
    images = noise(model) if images is None else images
    model.eval()  # gives None in some networks
    try:
        outputs = run(model, images, hook)
    except Exception as error:  # whatever a network raises over what it is given
        message = f'the network does not take {inputs}: {one_line(error)}; images gives what it takes'
        raise ValueError(message) from error
    for output in tree_leaves(outputs):
        if isinstance(output, Tensor) and output.numel():
            check_finite(output.reshape(len(output) if output.dim() else 1, -1), 'the network as it was given')
    return images, inputs, outputs


def run(model: nn.Module, images: Any, hook: Callable[[str, tuple, dict, Any], None]) -> Any:
    """The outputs of ``model`` in float64; ``hook`` gets name, arguments and outputs of every module."""
    images = tree_map(_double, images)
    args = () if isinstance(images, Mapping) else images if isinstance(images, tuple) else (images,)
    handles = [
        module.register_forward_hook(lambda _, *call, name=name: hook(name, *call), with_kwargs=True)
        for name, module in model.named_modules()
    ]
    try:
        return model(*args, **(images if isinstance(images, Mapping) else {}))
    finally:
        for handle in handles:
            handle.remove()


def _double(value: Any) -> Any:
    """A copy of ``value``, which a network may write to."""
    is_tensor = isinstance(value, Tensor)
    return value.to(torch.float64 if value.is_floating_point() else value.dtype, copy=True) if is_tensor else value


def relative_difference(expected: Any, outputs: Any) -> float:
    """The largest difference of two networks' outputs (tensors, or tuples, lists and dicts of them), each relative to
    the largest value of the expected one; infinite for outputs of other shapes, NaN where one is."""
    pairs = [[leaf.double() for leaf in tree_leaves(part) if isinstance(leaf, Tensor)] for part in (expected, outputs)]
    if [leaf.shape for leaf in pairs[0]] != [leaf.shape for leaf in pairs[1]]:
        return float('inf')
    tiny = torch.finfo(torch.float64).tiny
    apart = [(a - b).abs().max() / a.abs().max().clamp_min(tiny) for a, b in zip(*pairs) if a.numel()]
    return float(torch.stack(apart).max()) if apart else 0.0


def check_finite(outputs: Tensor, name: str) -> None:
    """Raise ValueError if ``outputs`` (N, ...) of the network called ``name`` hold NaN or infinities."""
    runtime.check_finite(outputs.isfinite().flatten(1).all(1).cpu().numpy(), name)


def image_channels(network: nn.Module) -> int:
    """How many channels the images have that a network takes, by its first convolution.

    Raises:
        ValueError: for a network without one.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise ValueError(f'{type(network).__name__} has no convolution')


def noise(network: nn.Module) -> Tensor:
    """Two images of noise, (2, C, 64, 64), always the same, of the network's type and on its device."""
    images = torch.randn(2, image_channels(network), 64, 64, generator=torch.Generator().manual_seed(0))
    return images.to(next(network.parameters()))
