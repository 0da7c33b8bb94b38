"""A training pipeline at another image size or augmentation strength.

Progressive learning, MobileOne (arXiv 2206.04040) section 3.3 after
EfficientNetV2 (arXiv 2104.00298) section 4: small and weakly augmented images
first. Pure functions on pipeline configs (lists of dicts), as mmpretrain's
transforms bake size and strength in when they are built.
"""

import copy

from mmpretrain.datasets.transforms.auto_augment import AUTOAUG_POLICIES, RANDAUG_POLICIES

from ..text import type_name

# Arguments that give a size in pixels, whatever the transform: Resize, RandomResizedCrop, RandomCrop, ...
_SIZE_KEYS = ('scale', 'crop_size', 'size')

# The magnitude arguments of AutoAugment's operations, with the value that leaves an image as it is.
_NEUTRAL = dict(magnitude=0, angle=0, thr=256, bits=8)

_DEFAULT_PROB = 0.5  # of mmpretrain's BaseAugTransform


def output_size(pipeline: list[dict]) -> int | None:
    """The image size in pixels (height, if not square) of the last transform that sets one; None if none does."""
    sizes = [value for transform in pipeline for value in _sizes(transform).values()]
    return None if not sizes else sizes[-1] if isinstance(sizes[-1], int) else sizes[-1][0]


def at_size(pipeline: list[dict], size: int | float) -> list[dict]:
    """A copy of ``pipeline`` that puts out images of ``size``.

    Args:
        size: pixels (int), or a fraction of the pipeline's own size (float).

    A transform before the last one that sets a size keeps its proportion to
    it: resize 256, crop 224 becomes resize 183, crop 160.

    Raises:
        ValueError: if no transform sets a size.
    """
    own = output_size(pipeline)
    if own is None:
        raise ValueError(f'the training pipeline has nothing to resize: no transform has {" or ".join(_SIZE_KEYS)}')
    ratio = size if isinstance(size, float) else size / own
    pipeline = copy.deepcopy(pipeline)
    for transform in pipeline:
        for key, value in _sizes(transform).items():
            pixels = [max(1, round(side * ratio)) for side in ([value] if isinstance(value, int) else value)]
            transform[key] = pixels[0] if isinstance(value, int) else tuple(pixels)
    return pipeline


def at_strength(pipeline: list[dict], strength: float) -> list[dict]:
    """A copy of ``pipeline`` that augments ``strength`` (0 .. 1) times as far and as often.

    AutoAugment and RandAugment: magnitudes go the way from "leaves the image
    alone" (0) to what the pipeline says (1), probabilities are multiplied.
    RandomErasing: its probability. Crops and flips stay.

    Raises:
        ValueError: if the pipeline has none of these.
    """
    pipeline = copy.deepcopy(pipeline)
    weaken = dict(AutoAugment=_weaken_autoaugment, RandAugment=_weaken_randaugment, RandomErasing=_weaken_erasing)
    scaled = [transform for transform in pipeline if type_name(transform) in weaken]
    if not scaled:
        raise ValueError(f'the training pipeline has no augmentation to scale: it needs {" or ".join(weaken)}')
    for transform in scaled:
        weaken[type_name(transform)](transform, strength)
    return pipeline


def _weaken_autoaugment(transform: dict, strength: float) -> None:
    policies = transform['policies']
    if isinstance(policies, str):
        policies = AUTOAUG_POLICIES[policies]
    transform['policies'] = [[_weaken_operation(operation, strength) for operation in sub] for sub in policies]


def _weaken_operation(operation: dict, strength: float) -> dict:
    weaker = dict(operation, prob=operation.get('prob', _DEFAULT_PROB) * strength)
    for key, neutral in _NEUTRAL.items():
        if key in operation:
            value = neutral + (operation[key] - neutral) * strength
            weaker[key] = round(value) if key == 'bits' else value
    return weaker


def _weaken_randaugment(transform: dict, strength: float) -> None:
    policies = transform['policies']
    if isinstance(policies, str):
        policies = RANDAUG_POLICIES[policies]
    transform['magnitude_level'] *= strength
    transform['policies'] = [dict(p, prob=p.get('prob', _DEFAULT_PROB) * strength) for p in policies]


def _weaken_erasing(transform: dict, strength: float) -> None:
    transform['erase_prob'] = transform.get('erase_prob', _DEFAULT_PROB) * strength


def _sizes(transform: dict) -> dict:
    """The arguments of ``transform`` that are sizes in pixels."""
    sizes = {}
    for key in _SIZE_KEYS:
        value = transform.get(key)
        sides = value if isinstance(value, (list, tuple)) else [value]
        # Random erasing, for one, has a `scale` that is a pair of fractions.
        if all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
            sizes[key] = value
    return sizes
