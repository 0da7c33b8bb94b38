"""What tools/convert_checkpoint.py does: any MobileOne checkpoint in, any out, with a model card."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..files import check_distinct, check_writable, suffix_of, write_atomically, write_text
from ..metadata import Metadata
from ..provenance import origin
from .layouts import BACKBONE, OWN
from .load import CLASSES, Weights, load_weights, to_layout, without_head
from .model_card import model_card
from .names import license_of, resolve
from .structure import read_structure, shapes_of

SUFFIXES = ('.pth', '.pt', '.safetensors')


def convert(
    source: str | Path,
    destination: Path,
    layout: str,
    backbone_only: bool = False,
    images: Path | None = None,
    num_images: int = 128,
    image_size: int = 224,
    ema: str = 'auto',
    trust: bool = False,
) -> tuple[Weights, Weights]:
    """Write the weights in ``source`` to ``destination`` in ``layout``, and a card beside it.

    Args:
        source: a file, or what :func:`mobileone_ext.checkpoints.names.resolve` knows.
        backbone_only: leave the head out; without this a source must have one.
        images: un-fuse, calibrated with ``num_images`` images of ``image_size`` pixels from below this folder.
        ema, trust: see :func:`mobileone_ext.checkpoints.load.load_weights`.

    Returns:
        The weights as read and as written.

    Raises:
        OSError, ValueError: if something is missing or does not fit; then nothing is written.
    """
    destination = Path(destination)
    check_suffix(destination)
    check_writable(destination)
    for written in (destination, card_path(destination)):
        check_distinct(written, source)
    original = weights = load_weights(source, ema, trust)
    if backbone_only:
        weights = backbone_alone(weights)
    elif weights.num_classes is None:
        raise ValueError(f'{source}: holds a backbone without a head; --backbone-only accepts it')
    note = None
    if images is not None:
        weights = with_branches_by(weights, images, num_images, image_size)
        note = f'un-fused, calibrated with {num_images} images of {image_size} px'
    file = resolve(source)
    weights = replace(weights, said=replace(weights.said, **origin(file, 'torch'), others=_config_of(weights.said)))
    write_weights(destination, weights, layout)
    card = model_card(destination, layout, weights, file, original, note, license_of(str(source)).text)
    write_text(card, card_path(destination))
    return original, weights


def _config_of(said: Metadata) -> dict[str, str]:
    """The config of its run, which a checkpoint has beside what it says of its network."""
    return {key: text for key, text in said.others.items() if key in ('config', 'cfg')}


def card_path(checkpoint: Path) -> Path:
    """Where the model card of ``checkpoint`` lies."""
    return checkpoint.with_name(f'{checkpoint.name}.md')


def backbone_alone(weights: Weights) -> Weights:
    """``weights`` without a classifier."""
    state = without_head(weights.state)
    structure = read_structure(shapes_of(state))
    extra = without_head(weights.extra)
    return replace(weights, state=state, structure=structure, classes=None, extra=extra, said=Metadata())


def with_branches_by(weights: Weights, images: Path, num_images: int = 128, image_size: int = 224) -> Weights:
    """:func:`with_branches` by ``num_images`` of ``image_size`` pixels from below the folder ``images``."""
    from ..data.calibration import calibration_batches

    channels = weights.structure.in_channels if weights.structure else 3
    return with_branches(weights, calibration_batches(images, num_images, image_size, channels=channels))


def with_branches(weights: Weights, batches: Iterable[Tensor], seed: int = 0) -> Weights:
    """Fused ``weights`` of a published variant as branched ones that compute the same, see unfuse.py.

    Args:
        batches: images to take the statistics of the branches from.
        seed: of the kernels of the branches that add nothing yet.

    Raises:
        ValueError: for weights that have branches, or a network without a name.
    """
    from ..backbone import MobileOne
    from .unfuse import with_branches_of

    structure = weights.structure
    assert structure, 'a MobileOne'
    if structure.form != 'fused':
        raise ValueError(f'has branches already: {structure}')
    if structure.variant is None:
        raise ValueError(f'only the published variants can be un-fused, and this is a {structure}')
    options: dict[str, Any] = dict(arch=structure.variant, in_channels=structure.in_channels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fused, branched = MobileOne(**options, deploy=True), MobileOne(**options)
    backbone = {key[len(BACKBONE) :]: tensor for key, tensor in without_head(weights.state).items()}
    fused.load_state_dict(backbone)
    return with_branches_of(weights, fused, branched, batches)


def check_suffix(path: Path) -> None:
    """Raise ValueError unless ``path`` ends as a checkpoint does."""
    if suffix_of(path) not in SUFFIXES:
        raise ValueError(f'{path}: the file to write ends in {", ".join(SUFFIXES)}')


def write_weights(path: Path, weights: Weights, layout: str) -> None:
    """Write ``weights`` under the names of ``layout``, whole or not at all.

    ``.safetensors`` holds the tensors, and in its metadata what the network says of itself and the names of classes.
    A torch file of Apple's and timm's layout holds the tensors alone, as theirs do; one of the own layout
    has them in ``state_dict``, the rest in ``meta``, and names where mmengine writes them.

    Raises:
        ValueError: for another suffix or layout; OSError if it can't be written.
    """
    check_suffix(path)
    state: dict[str, Tensor] = to_layout({**weights.state, **weights.extra}, layout)
    with write_atomically(path) as part:
        if suffix_of(path) == '.safetensors':
            # Two names for one tensor, or strides, are more than the format knows.
            plain = {key: tensor.contiguous().clone() for key, tensor in state.items()}
            named = {CLASSES: json.dumps(weights.classes)} if weights.classes else {}
            said = dict(weights.said.write(), format='pt', **named)
            part.write_bytes(save(plain, metadata=said))
        else:
            meta = dict(dataset_meta={CLASSES: weights.classes}) if weights.classes else {}
            meta |= weights.said.values()
            torch.save(state if is_bare(path, layout) else dict(meta=meta, state_dict=state), part)


def is_bare(path: Path, layout: str) -> bool:
    """Whether a file of this name and layout holds tensors and says nothing of its network."""
    return layout != OWN and suffix_of(path) != '.safetensors'
