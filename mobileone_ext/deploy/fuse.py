"""From trained branches to a deployed network: build what a checkpoint needs, fuse it, write it with its provenance."""

import copy
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from torch import nn

from ..backbone import MobileOne
from ..checkpoints.load import CLASSES, Weights, load_weights, read_checkpoint
from ..checkpoints.structure import read_structure, shapes_of
from ..config import building
from ..data.classes import class_names
from ..data.pixels import Preprocessing
from ..files import write_atomically
from ..metadata import NORMALIZED
from ..models import PREFIX, Classifier
from ..network import MobileOneNet
from .anywhere import FUSION_TOLERANCE, check_finite, fuse_blocks, noise, relative_difference
from .described import describe


def backbone_class(config: Config) -> type | None:
    """The class of the config's backbone; None where the config names none that is registered."""
    kind = (config.get('model') or {}).get('backbone', {}).get('type')
    return MODELS.get(kind) if isinstance(kind, str) else kind


def is_mobileone(config: Config) -> bool:
    """Whether the config's backbone is MobileOne or a subclass."""
    kind = backbone_class(config)
    return isinstance(kind, type) and issubclass(kind, MobileOne)


def fuses(config: Config) -> bool:
    """Whether the config's backbone can be fused, as whatever has ``switch_to_deploy`` can."""
    return hasattr(backbone_class(config), 'switch_to_deploy')


def read_weights(config: Config, checkpoint: str, ema: str = 'auto', trust: bool = False) -> Weights:
    """The weights in ``checkpoint``: a MobileOne's in any layout and form, another network's by its own keys.

    Args:
        ema, trust: as in :func:`mobileone_ext.checkpoints.load.load_weights`.
    """
    return load_weights(checkpoint, ema, trust, plain=not is_mobileone(config))


def build_model(config: Config, form: str) -> nn.Module:
    """The config's classifier in eval mode; a MobileOne ``'branched'`` or ``'fused'``."""
    model = copy.deepcopy(config.model)
    if is_mobileone(config):
        model.backbone.deploy = form == 'fused'
    with building(config.filename or 'the config'):
        return MODELS.build(model).eval()


def load_model(config: Config, weights: Weights) -> nn.Module:
    """The config's classifier in the form of ``weights``, loaded strictly.

    Its attribute ``classes`` has the names of its outputs, None where neither weights nor config know them; ``said``
    has what the file of the weights says of it.
    """
    model = build_model(config, weights.form or 'branched')
    weights.load_into(model)
    model.classes, model.said = class_names(config, weights.classes, weights.published), weights.said
    return model


@torch.no_grad()
def fuse(model: nn.Module) -> nn.Module:
    """A copy of a classifier in eval mode whose backbone is fused, if there is something to fuse.

    Raises:
        ValueError: see :func:`mobileone_ext.deploy.anywhere.fuse`; or an output on noise is not finite.
    """
    fused = copy.deepcopy(model)
    fuse_blocks(fused.backbone)
    # In float64 nothing overflows: again as it will run.
    check_finite(fused.backbone(noise(fused.backbone))[-1], 'the fused network')
    return fused


def save_fused(model: nn.Module, path: str | Path, config: Config, source: str | Path, place: str) -> None:
    """Save a fused classifier's weights with ``meta``: what it says of itself, its config, names of classes.

    Args:
        source: the checkpoint that the weights come from.
        place: in that file, e.g. ``'state_dict (EMA)'``.
    """
    classes = getattr(model, 'classes', None)
    said = describe(Preprocessing(config), classes, source, getattr(model, 'said', None))
    said = replace(said, architecture=plain_name(model), input=NORMALIZED)
    meta = dict(said.values(), source_weights=place, config=config.pretty_text)
    if classes:
        meta['dataset_meta'] = {CLASSES: tuple(classes)}  # as mmengine writes them
    state = {key: tensor.detach().contiguous() for key, tensor in model.state_dict().items()}
    torch.save({'meta': meta, 'state_dict': state}, path)


def add_to_meta(path: str | Path, **said: Any) -> None:
    """Let the checkpoint ``path``, of :func:`save_fused`, say more of its network: entries of ``Metadata``."""
    checkpoint = read_checkpoint(path)
    checkpoint['meta'].update(said)
    with write_atomically(path) as part:
        torch.save(checkpoint, part)


@torch.no_grad()
def plain_name(model: nn.Module) -> str | None:
    """The name by which :func:`mobileone_ext.models.create_model` builds a fused classifier from its weights alone.

    None for one that has other parts, or computes something else of noise.
    """
    with suppress(ValueError, RuntimeError):  # no MobileOne, or not its keys
        state = model.state_dict()
        found = read_structure(shapes_of(state))
        with torch.device('meta'):
            plain = Classifier(MobileOneNet(found.variant, found.in_channels, deploy=True), found.num_classes)
        plain.load_state_dict(state, assign=True)
        images = noise(model)
        if relative_difference(plain.eval()(images), model(images)) < FUSION_TOLERANCE:
            return PREFIX + found.variant
    return None
