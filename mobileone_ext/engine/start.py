"""What a run starts from (``load_from``): weights of any layout and form, with a new head where the classes are others.

Fused weights at the start of a branched run are un-fused with images of its own training set.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from mmengine.dataset import pseudo_collate
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..backbone import MobileOne
from ..checkpoints.load import Weights, in_order, load_weights
from ..checkpoints.structure import shapes_of
from ..checkpoints.unfuse import with_branches_of
from ..data.classes import are_same
from ..recipe.seeding import seed_generators, untouched_generators

NUM_IMAGES = 128
BATCH_SIZE = 32


def start_from(
    source: str, model: nn.Module, config: dict, dataset: Sequence, classes: Sequence[str] | None
) -> list[str]:
    """Load the weights in ``source`` into ``model``; what there is to say about it, by lines.

    A head of another class count, or none, leaves the model's as it was initialized.

    Args:
        config: that ``model`` was built from.
        dataset: of training, as mmengine builds it.
        classes: of that, in its order; None if it has no names.

    Raises:
        OSError, ValueError: for weights that cannot be read or do not fit.
    """
    is_mobileone = isinstance(getattr(model, 'backbone', None), MobileOne)
    weights = load_weights(source, plain=not is_mobileone)
    stored, own = shapes_of({**weights.state, **weights.extra}), shapes_of(model.state_dict())
    heads = [key for key in own if key.startswith('head.')]
    new_head = any(key in stored and stored[key] != own[key] for key in heads)
    new_head = new_head or bool(heads) and not any(key.startswith('head.') for key in stored)
    others: object = weights.num_classes or 'none that fits'
    if not new_head and is_mobileone and not are_same(classes, weights.classes):
        if sorted(classes) == sorted(weights.classes):
            weights = in_order(weights, classes)
        else:
            new_head, others = True, 'others'
    line = f'{source}: {weights.structure or type(model).__name__}, from {weights.source}'
    if weights.layout:
        line += f', {weights.layout} layout'
    if weights.form == 'fused' and not model.backbone.deploy:
        weights, num_images = give_branches(config, model, weights, dataset)
        line += f'; un-fused, with the statistics of {num_images} training images'
    weights.load_into(model, new_head)
    if not new_head:
        return [line]
    count = getattr(model.head, 'num_classes', 'other')
    return [line, f'the head is new, with {count} classes; the file has {others}']


def give_branches(
    config: dict, model: nn.Module, weights: Weights, dataset: Sequence, num_images: int = NUM_IMAGES
) -> tuple[Weights, int]:
    """Fused ``weights`` with the branches of ``model``, and the number of images that gave them their statistics.

    Every process of a run gets the same ones, and the random numbers of the run are not touched.

    Args:
        config: that ``model`` was built from.
        model: a branched classifier; its initial kernels go to the branches that add nothing yet.
        dataset: of training, as mmengine builds it.
        num_images: of it, for the statistics.

    Raises:
        ValueError: if the weights are of another network.
    """
    backbone = dict(config['backbone'], frozen_stages=-1, norm_eval=False, with_cp=False, deploy=False)
    if 'SyncBN' in str(backbone.get('norm_cfg')):  # every process sees all of the images
        backbone['norm_cfg'] = dict(backbone['norm_cfg'], type='BN')
    with _fixed_seed():
        fused = MODELS.build(dict(config, backbone=dict(backbone, deploy=True)))
        branched = MODELS.build(backbone)
    weights.load_into(fused, new_head=True)
    branched.load_state_dict(model.backbone.state_dict())
    device = next(model.parameters()).device
    count = min(num_images, len(dataset))
    with _fixed_seed():
        images = _batches(model, dataset, count)
        return with_branches_of(weights, fused.backbone.to(device), branched.to(device), images), count


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
