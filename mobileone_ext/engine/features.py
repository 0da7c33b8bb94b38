"""What a network makes of photos before its last layer: maps of the backbone, and features pooled from them."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.pixels import Preprocessing, in_batches
from ..deploy import fuse
from ..deploy.described import find_network
from ..deploy.explain import class_maps, gray_levels, is_pooled
from ..files import write_atomically
from ..text import as_text, printable, with_progress

_BATCH = 32


@torch.no_grad()
def maps_of(model: nn.Module, loader: DataLoader) -> Iterator[tuple[list[str], tuple[Tensor, ...]]]:
    """For each batch of ``loader`` the paths of its photos and the outputs of the backbone, the last of them last.

    Args:
        model: one of mmpretrain's classifiers with a backbone, in eval mode, on any device.
    """
    for batch in with_progress(loader, 'looking at photos'):
        paths = [sample.img_path for sample in batch['data_samples']]
        yield paths, model.backbone(model.data_preprocessor(batch)['inputs'])


@torch.no_grad()
def pool(model: nn.Module, maps: tuple[Tensor, ...]) -> np.ndarray:
    """The features (n, C) float32 that the head of ``model`` is given of what its backbone put out."""
    return (model.neck(maps) if model.with_neck else maps)[-1].float().cpu().numpy()


def features_of(model: nn.Module, loader: DataLoader) -> tuple[list[str], np.ndarray]:
    """Paths of the photos of ``loader`` and their pooled features (N, C) float32, as the head of ``model`` gets them.

    Args:
        model, loader: as of :func:`maps_of`; the photos in the loader's order.
    """
    paths, features = [], []
    for of_batch, maps in maps_of(model, loader):
        paths += of_batch
        features.append(pool(model, maps))
    return paths, np.concatenate(features)


def look(model: nn.Module, loader: DataLoader) -> tuple[np.ndarray, np.ndarray | None]:
    """The features of :func:`features_of`, and where the network looked for each photo's best class.

    The latter (N, h, w) uint8, see :func:`mobileone_ext.deploy.explain.gray_levels`; None for a network that
    :func:`mobileone_ext.deploy.explain.is_pooled` is not true of.
    """
    features, levels = [], []
    for _, maps in maps_of(model, loader):
        features.append(pool(model, maps))
        if is_pooled(model):
            best = model.head(model.neck(maps)).argmax(1)
            levels.append(gray_levels(class_maps(maps[-1], model.head.fc.weight, best)))
    return np.concatenate(features), np.concatenate(levels) if levels else None


@torch.no_grad()
def features_of_photos(
    network: str, config: str | None, paths: Iterable[Path], skipped: list[str]
) -> tuple[list[Path], np.ndarray]:
    """The readable ones of ``paths`` and their pooled features (N, C) float32, prepared as for predictions.

    Args:
        network: a checkpoint, a run's folder or published weights by name.
        config: of a network that does not say which images it takes.
        skipped: gets a message about each file that is not a readable image.

    Raises:
        OSError, ValueError: for a network or photos that cannot be read.
    """
    found = find_network(network, otherwise=config)
    model = fuse.load_model(found.config, fuse.read_weights(found.config, found.path))
    preprocessing = Preprocessing(found.config)
    files, features = [], []
    for of_batch, pixels in in_batches(preprocessing.read(paths, skipped), _BATCH):
        files += of_batch
        features.append(pool(model, model.backbone(preprocessing.normalize(pixels))))
    return files, np.concatenate(features)


def nearest(features: np.ndarray, like: np.ndarray, count: int) -> list[tuple[int, float]]:
    """Rows of ``features`` (N, C) that point most nearly as ``like`` (C,), with the cosine between them, best first."""
    cosines = features @ like / (np.linalg.norm(features, axis=1) * np.linalg.norm(like)).clip(1e-12)
    return [(int(row), float(cosines[row])) for row in np.argsort(-cosines, kind='stable')[:count]]


def write_features(out: str | Path, files: list[Path], features: np.ndarray) -> None:
    """Write ``features`` as npz, and beside them ``paths`` and ``names``, of the folders that the photos lie in."""
    with write_atomically(out) as part, open(part, 'wb') as file:
        paths, names = ([as_text(text) for text in texts] for texts in (files, names_of(files)))
        np.savez(file, features=features, paths=np.array(paths), names=np.array(names))


def write_projector(folder: str | Path, files: list[Path], features: np.ndarray) -> None:
    """Write what ``tensorboard --logdir folder`` shows under Projector, each photo by its name and path."""
    from torch.utils.tensorboard import SummaryWriter

    rows = [[printable(name), printable(path)] for name, path in zip(names_of(files), files)]
    with SummaryWriter(str(folder)) as writer:
        writer.add_embedding(features, rows, metadata_header=['name', 'path'])


def names_of(files: Iterable[Path]) -> list[str]:
    """The folder of each photo, which often is its class."""
    return [file.absolute().parent.name for file in files]
