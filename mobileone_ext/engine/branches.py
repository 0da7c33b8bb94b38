"""Fused weights as the start of a branched run: un-fused with images of its own training set."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from mmengine.dataset import pseudo_collate
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..checkpoints.layouts import BACKBONE, HEAD
from ..checkpoints.load import Weights, load_strict
from ..checkpoints.structure import read_structure, shapes_of
from ..checkpoints.unfuse import unfuse
from ..recipe.seeding import seed_generators, untouched_generators

NUM_IMAGES = 128
BATCH_SIZE = 32


def give_branches(
    config: dict, model: nn.Module, weights: Weights, name: str, dataset: Sequence
) -> tuple[Weights, int]:
    """Fused ``weights`` with the branches of ``model``, and the number of images that gave them their statistics.

    Every process of a run gets the same ones, and the random numbers of the run are not touched.

    Args:
        config: that ``model`` was built from.
        model: a branched classifier; its initial kernels go to the branches that add nothing yet.
        name: of the file, for messages.
        dataset: of training, as mmengine builds it.

    Raises:
        ValueError: if the weights are of another network.
    """
    backbone = dict(config['backbone'], frozen_stages=-1, norm_eval=False, with_cp=False)
    if 'SyncBN' in str(backbone.get('norm_cfg')):  # every process sees all of the images
        backbone['norm_cfg'] = dict(backbone['norm_cfg'], type='BN')
    with _fixed_seed():
        fused = MODELS.build(dict(config, backbone=dict(backbone, deploy=True)))
        branched = MODELS.build(backbone)
    load_strict(fused, weights, name, backbone_only=True)
    branched.load_state_dict(model.backbone.state_dict())
    device = next(model.parameters()).device
    count = min(NUM_IMAGES, len(dataset))
    with _fixed_seed():
        unfuse(fused.backbone.to(device), branched.to(device), _batches(model, dataset, count))
    state = {BACKBONE + key: tensor.cpu() for key, tensor in branched.state_dict().items()}
    state.update({key: tensor for key, tensor in weights.state.items() if key.startswith(HEAD)})
    return replace(weights, state=state, structure=read_structure(shapes_of(state))), count


def _batches(model: nn.Module, dataset: Sequence, count: int) -> Iterator[Tensor]:
    """``count`` images of ``dataset``, spread evenly, as the network sees them in training."""
    indices = [i * len(dataset) // count for i in range(count)]
    for start in range(0, count, BATCH_SIZE):
        batch = pseudo_collate([dataset[i] for i in indices[start : start + BATCH_SIZE]])
        yield model.data_preprocessor(dict(inputs=batch['inputs']))['inputs']


@contextmanager
def _fixed_seed() -> Iterator[None]:
    """Draw from a fixed seed inside, and go on outside as if nothing had been drawn."""
    with torch.random.fork_rng(), untouched_generators():
        seed_generators(0)
        yield
