"""What a person chooses of a fine-tuning run, and what follows from that and the photos."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ... import cli
from ...arch import ARCHS
from .recipe import Recipe

if TYPE_CHECKING:
    from .photos import Photos

RANDOM = 'none'  # the name of random weights
# What options take: a tool reads its words by these, and :class:`Options` whatever it is given.
TAKES = dict(
    epochs=cli.positive,
    size=cli.whole(32, 1024),
    batch_size=cli.whole(2),
    lr=cli.positive_number,
    seed=cli.whole(0, 2**32 - 1),
    freeze=cli.whole(-1, 4),
    early_stop=cli.positive,
    precision=cli.fraction,
)
CHOICES = dict(
    arch=[name for name in ARCHS if name.startswith('s')],
    fit=['crop', 'pad', 'squash'],
    unfuse=['none', 'norm', 'branches'],
)


@dataclass(frozen=True)
class Options:
    """What a person may choose.

    Attributes:
        photos: class folders, a folder with train and val, or a CSV file.
        weights: file, name or address to start from, or ``none``; None is Apple's fused network of ``arch``.
        arch: None is that of ``weights``, or s0.
        size: of the images in pixels.
        batch_size: None follows from the number of photos.
        lr: None follows from what is trained and the batch.
        val: a folder or CSV file to measure on, or the fraction of ``photos`` to set aside.
        seed: of the split, the head and the order.
        freeze: stages that stay as they are: 0 the stem, i also stages 1 .. i; -1 none.
        work_dir: None is work_dirs/finetune_NAME.
        unfuse: what fused weights get before training: none, norm (batch norms) or branches (both); None is norm for
            batches of 32 and more.
        balance: show photos of rare classes more often.
        early_stop: epochs without a better one before the run ends; None goes to the end.
        fit: how a photo gets its size, see :class:`mobileone_ext.metadata.Metadata`.
        precision: of answers, 0 .. 1, which the threshold of the scores is for.
        others: a folder of photos that are none of the classes.

    Raises:
        ValueError: for a value that an option does not take.
    """

    photos: str
    weights: str | None = None
    arch: str | None = None
    epochs: int = 20
    size: int = 224
    batch_size: int | None = None
    lr: float | None = None
    val: str | None = None
    seed: int = 0
    freeze: int = -1
    work_dir: str | None = None
    unfuse: str | None = None
    balance: bool = False
    early_stop: int | None = None
    fit: str = 'crop'
    precision: float = 0.95
    others: str | None = None

    def __post_init__(self):
        for name, value in vars(self).copy().items():
            if isinstance(value, os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
            elif value is None and getattr(Options, name, '') is None:
                continue
            elif name in TAKES:
                try:
                    object.__setattr__(self, name, TAKES[name](str(value)))
                except argparse.ArgumentTypeError as error:
                    raise ValueError(f'{name}: {error}') from None
            elif name in CHOICES and value not in CHOICES[name]:
                raise ValueError(f'{name}: {value!r}: one of {", ".join(CHOICES[name])} is needed')

    @property
    def folder(self) -> Path:
        """Where everything of this run goes."""
        name = os.path.basename(os.path.abspath(self.photos))
        return Path(self.work_dir or Path('work_dirs', f'finetune_{name}')).absolute()


@dataclass(frozen=True)
class Plan:
    """A run, all of it checked and nothing of it written.

    Attributes:
        options: with the values that those came to that were not given.
        form: of the network that is trained: ``'fused'``, ``'norm'`` (one convolution and its batch norm a block) or
            ``'branched'``.
        threshold: of ``ClassBalancedDataset``; None without it.
        workers: processes that load photos.
        command: the line that wrote it, for the config's reader.
    """

    photos: 'Photos'
    recipe: Recipe
    options: Options
    form: str
    threshold: float | None = None
    workers: int = 2
    command: str = 'tools/finetune.py'
