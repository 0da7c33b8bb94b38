"""What a network makes of photos before its last layer: maps of the backbone, and features pooled from them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..deploy.explain import class_maps, gray_levels, is_pooled
from ..text import with_progress


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
