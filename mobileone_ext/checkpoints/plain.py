"""Checkpoints of networks that are not MobileOnes: read as safely, loaded as strictly, under their own keys."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .layouts import BACKBONE
from .load import class_names_in, find_state, read_checkpoint
from .structure import differences, other_head, shapes_of

_WRAPPER = 'module.'


@dataclass(frozen=True)
class PlainWeights:
    """Weights of any network.

    Attributes:
        state: by the keys of the file.
        source: where in the file they were, e.g. ``'state_dict (EMA)'``.
        classes: names, in the order of the outputs; None if the file has none.
    """

    state: dict[str, Tensor]
    source: str
    classes: tuple[str, ...] | None


def load_plain(path: str | Path, ema: str = 'auto', trust: bool = False) -> PlainWeights:
    """The weights in a checkpoint, arguments and errors as of :func:`mobileone_ext.checkpoints.load.load_weights`."""
    checkpoint = read_checkpoint(path, trust)
    try:
        state, source, _ = find_state(checkpoint, ema)
        state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        if not state:
            raise ValueError('holds no weights')
        if all(key.startswith(_WRAPPER) for key in state):
            state = {key[len(_WRAPPER) :]: tensor for key, tensor in state.items()}
        for key, tensor in state.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError(f'{key} holds NaN or infinite values')
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
    return PlainWeights(state, source, class_names_in(path, checkpoint))


def load_plain_strict(model: nn.Module, weights: PlainWeights, name: str) -> None:
    """Load ``weights`` into ``model``, every key or none; fused ones fuse a backbone that can be.

    Args:
        name: of the file, for messages.

    Raises:
        ValueError: naming the keys that don't fit.
    """
    found = shapes_of(weights.state)
    expected = shapes_of(model.state_dict())
    problems = differences(expected, found)
    backbone: Any = getattr(model, 'backbone', None)
    if problems and hasattr(backbone, 'switch_to_deploy'):
        fused = copy.deepcopy(backbone)
        fused.switch_to_deploy()
        others = {key: value for key, value in model.state_dict().items() if not key.startswith(BACKBONE)}
        own = others | {BACKBONE + key: value for key, value in fused.state_dict().items()}
        if not differences(shapes_of(own), found):
            backbone.switch_to_deploy()
            problems = []
    if problems:
        raise ValueError(
            f'{name}: does not fit the network of the config: {"; ".join(problems)}{other_head(expected, found)}'
        )
    model.load_state_dict(weights.state)
