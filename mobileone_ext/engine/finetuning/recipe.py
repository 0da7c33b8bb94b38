"""The values of a fine-tuning run that follow from its photos: pure functions of counts.

docs/results/finetune.md says what the defaults rest on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

BATCH_SIZE = 32  # the learning rates are for this one
LR = dict(fused=1e-4, norm=3e-4, branched=3e-4)  # by ``Plan.form``
LR_FROM_SCRATCH = 2e-3
MIN_STEPS = 8  # an epoch should have so many
WARM_UP = 0.1  # of the steps
EMA_MIN_STEPS = 200
EMA_SPAN = 0.05  # of the steps: what the average looks back on


@dataclass(frozen=True)
class Recipe:
    """Numbers of a run; see the functions of this file.

    Attributes:
        warm_up: in epochs, maybe a fraction of one.
        ema_momentum: None for a run too short to average over.
    """

    epochs: int
    batch_size: int
    steps_per_epoch: int
    lr: float
    warm_up: float
    ema_momentum: float | None
    drop_last: bool


def make_recipe(num_photos: int, epochs: int, batch_size: int, lr: float) -> Recipe:
    """The recipe for ``num_photos`` photos an epoch."""
    drop_last = num_photos > batch_size and num_photos % batch_size == 1
    steps = max(1, num_photos // batch_size if drop_last else math.ceil(num_photos / batch_size))
    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        steps_per_epoch=steps,
        lr=lr,
        warm_up=warm_up_epochs(epochs, steps),
        ema_momentum=ema_momentum(epochs * steps),
        drop_last=drop_last,
    )


def warm_up_epochs(epochs: int, steps: int) -> float:
    """``WARM_UP`` of the run as whole steps, in epochs of ``steps``; 0 for a run too short for one."""
    warm_up = round(WARM_UP * epochs * steps)
    return math.ceil(warm_up / steps * 1e5) / 1e5  # up: mmengine cuts the product with ``steps``


def fitting_batch_size(num_photos: int) -> int:
    """32, or a smaller power of two (4 at least) that makes ``MIN_STEPS`` batches of ``num_photos``."""
    return min(BATCH_SIZE, max(4, 2 ** int(math.log2(max(num_photos / MIN_STEPS, 1)))))


def fitting_unfuse(batch_size: int) -> str:
    """``norm``, or ``none`` where the batch is smaller than those that norms were tried with."""
    return 'norm' if batch_size >= BATCH_SIZE else 'none'


def scaled_lr(lr: float, batch_size: int) -> float:
    """``lr`` at ``BATCH_SIZE``, scaled by the square root of the batch size, as suits AdamW; two digits."""
    return float(f'{lr * math.sqrt(batch_size / BATCH_SIZE):.2g}')


def ema_momentum(steps: int) -> float | None:
    """mmengine's EMA momentum that averages over ``EMA_SPAN`` of ``steps``; None below ``EMA_MIN_STEPS``."""
    return float(f'{1 / (EMA_SPAN * steps):.2g}') if steps >= EMA_MIN_STEPS else None


def balanced_count(counts: Sequence[int], threshold: float) -> int:
    """Photos an epoch by mmpretrain's ``ClassBalancedDataset``: each ``ceil(sqrt(threshold / frequency))`` times."""
    total = sum(counts)
    return sum(count * math.ceil(max(1.0, math.sqrt(threshold * total / count))) for count in counts if count)
