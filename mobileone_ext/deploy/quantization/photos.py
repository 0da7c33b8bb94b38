"""The photos that calibrate: which they are, read, and what a careless choice of them looks like, without labels."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from mmengine.config import Config
from mmpretrain.registry import DATASETS
from torch import Tensor

from ...data.check import prepare_data
from ...data.images import Listing, find_images, spread
from ...data.nested import datasets_of
from ...data.pixels import Preprocessing

REMEDY = 'name photos to calibrate on (--images DIR)'
FLAT = 0.5  # gray levels of standard deviation that a photo has at least
UNSURE = 0.2  # mean largest probability; S0 has 0.61 on its own photos, 0.24 on other ones, 0.11 to 0.18 on textures
ONE_SIDED = 0.5  # of the photos, predicted as one class
FEW_CLASSES = 5  # networks of fewer are sure of anything, and may well see one class most of the time


def find(config: Config, folder: str | None) -> tuple[Listing, str]:
    """The images in ``folder``, or else those that the config trains on; and where that is, for messages.

    Raises:
        OSError, ValueError: for a folder without images, or a config whose training images are not there.
    """
    if folder is not None:
        return find_images([folder]), folder
    if not config.get('train_dataloader'):
        raise ValueError(f'{config.filename}: has no training set to calibrate on; {REMEDY}')
    try:
        prepare_data(config, 'train_dataloader')
    except (ValueError, OSError) as error:
        raise ValueError(f'{error}; or {REMEDY}') from error
    sets = [DATASETS.build({**dataset, 'pipeline': []}) for dataset, _ in datasets_of(config, 'train_dataloader')]
    listed = dict.fromkeys(part.get_data_info(index).get('img_path') for part in sets for index in range(len(part)))
    if None in listed or any('://' in path for path in listed):
        raise ValueError(f'{config.filename}: its training images are no files; {REMEDY}')
    return Listing(map(Path, listed)), 'the training set'


def read(
    files: Sequence[Path], place: str, preprocessing: Preprocessing, count: int, skipped: list[str] | None = None
) -> Tensor:
    """Pixels (N, C, H, W), 0 .. 255, of ``count`` images spread evenly over ``files``, for unreadable ones others.

    Args:
        place: where the files are, for messages.
        skipped: gets a message about each unreadable file.

    Raises:
        ValueError: if fewer are readable, or they are of several sizes.
    """
    chosen = dict.fromkeys([*spread(files, count), *files])
    pixels = [image for _, image in islice(preprocessing.read(chosen, [] if skipped is None else skipped), count)]
    if len(pixels) < count:
        raise ValueError(
            f'{place}: {len(pixels)} of {len(files)} files are readable images, --num-images asks for {count}; '
            'ask for fewer'
        )
    sizes = {tuple(image.shape[1:]) for image in pixels}
    if len(sizes) > 1:
        raise ValueError(f"{place}: the config's test pipeline gives images of several sizes: {sorted(sizes)[:4]}")
    return torch.stack(pixels)


def warnings_about(pixels: Tensor, probabilities: Tensor | None, folder: str) -> list[str]:
    """Warnings about calibration photos, each a line.

    Args:
        pixels: 0 .. 255, (N, C, H, W).
        probabilities: of the float network, (N, classes); None where classes do not exclude each other.
        folder: where the photos are, for the messages.

    Raises:
        ValueError: if no photo has anything on it.
    """
    if not pixels.flatten(2).std(2).amax() > FLAT:
        raise ValueError(
            f'{folder}: each of {len(pixels)} photos is of one color; ranges need photos of what the network will see'
        )
    warnings = []
    if pixels.shape[1] == 3 and (pixels - pixels.mean(1, keepdim=True)).abs().amax() < FLAT:
        warnings.append(f'{folder}: all photos are gray; ranges for color need photos in color')
    if probabilities is None or probabilities.shape[1] < FEW_CLASSES:
        return warnings
    confidence = float(probabilities.amax(1).mean())
    share = float(probabilities.argmax(1).bincount().amax()) / len(probabilities)
    if confidence < UNSURE:
        warnings.append(
            f'{folder}: the network is unsure of these photos (mean probability of the best class {confidence:.2f}): '
            'textures, blur and noise give ranges that do not fit photos; take some of what the network will see'
        )
    if share > ONE_SIDED:
        warnings.append(
            f'{folder}: {share:.0%} of the photos are predicted as one class; what others need may be clipped'
        )
    return warnings
