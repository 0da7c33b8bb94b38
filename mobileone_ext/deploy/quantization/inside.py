"""Equalization of what stands inside any network, its outputs unchanged.

Which convolution reads which one's map is seen from the operators that run: where a map goes through ReLU into one
convolution and nowhere else, its channels can be divided and multiplied back. A map that anything else reads (a sum,
a skip connection, a head) keeps its scale, and so does one that a module returns among others. Torch alone.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from ..anywhere import FUSION_TOLERANCE, check_values, relative_difference, run, run_given
from . import Options
from .chain import Layer, even_out

ATEN = torch.ops.aten
RELU = ATEN.relu.default, ATEN.relu_.default


@torch.no_grad()
def prepare(model: nn.Module, images: Any = None) -> dict:
    """Bring channels inside ``model`` to ranges that other quantizers can bear, in place or not at all.

    The network computes the same; its blocks are fused before, see :func:`mobileone_ext.fuse`. What reads a map in
    training alone is not seen, unless a module returns the map in a tuple, a list or a dict.

    Args:
        images: what it takes: a batch (N, C, H, W) of photos as it is to see them, a tuple of arguments, or a dict of
            named ones. With None, weights alone are balanced, and two images of noise prove it.

    Returns:
        ``pairs``, the names of convolutions with an evened map between them, in order; and ``difference``, how far
        outputs lie from what they were, relative to the largest.

    Raises:
        ValueError: if there is no such pair, or the outputs would change; the model is as it was.
    """
    dtype = check_values(model)
    after, options = copy.deepcopy(model).double(), Options()
    with Maps(after) as maps:
        taken, _, expected = run_given(after, images, maps.keep)
    pairs = [*maps.pairs()]
    if not pairs:
        raise ValueError('nothing to equalize: no convolution reads the map of another alone; m1.fuse comes first')
    for first, then in pairs:
        layers = (Layer(name, after.get_submodule(name), nn.Identity()) for name in (first, then))
        even_out(*layers, maps.largest[then], 0.0 if images is None else options.balance, options.floor)
    difference = relative_difference(expected, run(after.to(dtype).double(), taken, lambda *_: None))
    if not difference <= FUSION_TOLERANCE:
        raise ValueError(f'equalization changes the network: outputs differ by {difference:.1e} of the largest')
    for name in dict.fromkeys(sum(pairs, ())):
        model.get_submodule(name).load_state_dict(after.get_submodule(name).state_dict())
    return dict(pairs=pairs, difference=difference)


class Maps(TorchDispatchMode):
    """Sees which convolution of ``model`` makes a map, and what reads it.

    Attributes:
        readers: by a convolution's name: those that read its map, None among them for whatever else does.
        sources: by a convolution's name: those whose maps it reads, None among them for another map.
        largest: by a convolution's name: the largest value (C,) of each channel that it reads.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        # By parameters: a weight that is computed of others at each call is nobody's.
        self.names = {}
        for name, parameter in model.named_parameters():
            owner = name.rpartition('.')[0]
            if isinstance(model.get_submodule(owner), nn.Conv2d):
                self.names[id(parameter)] = owner
        self.made_by = WeakTensorKeyDictionary()
        self.readers: dict[str, set] = defaultdict(set)
        self.sources: dict[str, set] = defaultdict(set)
        self.largest: dict[str, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        conv = self.names.get(id(args[1])) if func is ATEN.convolution.default else None
        passed = args[0] if conv or func in RELU else None
        source = self.made_by.get(passed) if passed is not None else None
        for value in tree_leaves((args, kwargs)):
            if value is not passed:
                self._read(value)
        if conv:
            self.sources[conv].add(source)
            self._read(passed, conv)
            largest = passed.abs().amax((0, 2, 3))
            self.largest[conv] = largest.maximum(self.largest.get(conv, largest))
        outputs = func(*args, **(kwargs or {}))
        if conv or source:
            self.made_by[outputs] = conv or source
        return outputs

    def _read(self, value: Any, reader: str | None = None) -> None:
        if isinstance(value, Tensor) and value in self.made_by:
            self.readers[self.made_by[value]].add(reader)

    def keep(self, name: str, args: tuple, kwargs: dict, outputs: Any) -> None:
        """A forward hook: what the network returns, or any module among others, is read by whoever wants to."""
        if not name or not isinstance(outputs, Tensor):
            for value in tree_leaves(outputs):
                self._read(value)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Convolutions, each with the only one that reads its map and reads nothing else."""
        for first, readers in self.readers.items():
            then = next(iter(readers)) if len(readers) == 1 else None
            if then and self.sources[then] == {first}:
                conv: Any = self.model.get_submodule(then)
                if conv.groups == 1 or conv.groups == conv.in_channels == conv.out_channels:
                    yield first, then
