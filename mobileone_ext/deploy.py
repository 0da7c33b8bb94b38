"""From trained branches to a deployed network, and the proof that it is the same one.

Build the network that a checkpoint needs, fuse it, write it with its provenance,
and hold the file that was written against its source on real images.
"""

import copy
import hashlib
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Union

import mmengine
import mmpretrain
import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config
from mmpretrain.evaluation import Accuracy
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from . import __version__
from .checkpoints import Weights, load_strict
from .files import save_checkpoint

# Fused and branched outputs differ by rounding alone: 1e-15 in float64 for every variant, however deep.
ALGEBRA_TOLERANCE = 1e-9


def build_model(config: Config, form: str) -> nn.Module:
    """The config's classifier in eval mode, its backbone ``'branched'`` or ``'fused'``."""
    model = copy.deepcopy(config.model)
    model.backbone.deploy = form == 'fused'
    return MODELS.build(model).eval()


def load_model(config: Config, weights: Weights, name: Union[str, Path]) -> nn.Module:
    """The config's classifier in the form of ``weights``, loaded strictly; ``name`` is for messages."""
    model = build_model(config, weights.form)
    load_strict(model, weights, str(name))
    return model


def fuse(model: nn.Module) -> nn.Module:
    """A fused copy of a classifier in eval mode.

    Raises:
        ValueError: if the copy does not compute the same function in float64.
    """
    fused = copy.deepcopy(model)
    fused.backbone.switch_to_deploy()
    difference = algebra_difference(model, fused)
    if not difference <= ALGEBRA_TOLERANCE:
        raise ValueError(
            f'the fused network is not the branched one: outputs differ by {difference:.1e} of their size in float64'
        )
    return fused


@torch.no_grad()
def algebra_difference(model: nn.Module, fused: nn.Module) -> float:
    """Largest difference of two backbones' outputs relative to the largest output, in float64.

    The fused weights are rounded to their own type before, so fuse in float64 to
    see the algebra alone: here the copy is fused again from float64 weights.
    """
    branched = copy.deepcopy(model.backbone).double()
    again = copy.deepcopy(branched)
    again.switch_to_deploy()
    channels = branched.stage0.in_channels
    images = torch.randn(2, channels, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected, found = branched(images)[-1], again(images)[-1]
    return float((found - expected).abs().max() / expected.abs().max())
