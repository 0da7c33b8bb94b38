"""Any MobileOne checkpoint in, any out: what tools/convert_checkpoint.py does."""

from dataclasses import replace
from pathlib import Path
from typing import Dict, Iterable

import torch
from safetensors.torch import save
from torch import Tensor

from .checkpoints import Weights, to_layout, without_head
from .files import save_checkpoint, write_atomically
from .layouts import HEAD, OWN
from .structure import read_structure, shapes_of

SUFFIXES = ('.pth', '.pt', '.safetensors')


def backbone_alone(weights: Weights) -> Weights:
    """``weights`` without a classifier."""
    state = without_head(weights.state)
    return replace(weights, state=state, structure=read_structure(shapes_of(state)))


def with_branches(weights: Weights, batches: Iterable[Tensor], seed: int = 0) -> Weights:
    """Fused ``weights`` of a published variant as branched ones that compute the same, see unfuse.py.

    Args:
        batches: images to take the statistics of the branches from.
        seed: of the kernels of the branches that add nothing yet.

    Raises:
        ValueError: for weights that have branches, or a network without a name.
    """
    from .backbone import MobileOne
    from .unfuse import unfuse

    structure = weights.structure
    if structure.form != 'fused':
        raise ValueError(f'has branches already: {structure}')
    if structure.variant is None:
        raise ValueError(f'only the published variants can be un-fused, and this is a {structure}')
    options = dict(arch=structure.variant, in_channels=structure.in_channels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fused, branched = MobileOne(**options, deploy=True), MobileOne(**options)
    backbone = {key[len('backbone.') :]: tensor for key, tensor in without_head(weights.state).items()}
    fused.load_state_dict(backbone)
    unfuse(fused, branched, batches)
    state = {f'backbone.{key}': tensor for key, tensor in branched.state_dict().items()}
    state.update({key: tensor for key, tensor in weights.state.items() if key.startswith(HEAD)})
    return replace(weights, state=state, structure=read_structure(shapes_of(state)))


def check_suffix(path: Path) -> None:
    """Raise ValueError unless ``path`` ends as a checkpoint does."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f'{path}: the file to write ends in {", ".join(SUFFIXES)}')


def write_weights(path: Path, weights: Weights, layout: str) -> None:
    """Write ``weights`` under the names of ``layout``, whole or not at all.

    ``.safetensors`` holds the tensors alone; so does a torch file of Apple's and timm's
    layout, as theirs do. A torch file of the own layout has them in ``state_dict``.

    Raises:
        ValueError: for another suffix or layout; OSError if it can't be written.
    """
    check_suffix(path)
    state: Dict[str, Tensor] = to_layout(weights.state, layout)
    if path.suffix == '.safetensors':
        # Two names for one tensor, or strides, are more than the format knows.
        plain = {key: tensor.contiguous().clone() for key, tensor in state.items()}
        with write_atomically(path) as part:
            part.write_bytes(save(plain, metadata=dict(format='pt', layout=layout)))
    else:
        save_checkpoint(dict(meta={}, state_dict=state) if layout == OWN else state, path)
