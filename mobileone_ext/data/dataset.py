"""mmpretrain's data set of class folders or an annotation file, over the one finder of photos, with classes by name."""

from collections.abc import Sequence
from pathlib import Path

from mmpretrain.datasets import CustomDataset as _CustomDataset

from ..registry import DATASETS
from ..text import nfc, quoted
from .images import SUFFIXES, images_below, names_of_folders, photos_by_folder


@DATASETS.register_module()
class CustomDataset(_CustomDataset):
    """mmpretrain's ``CustomDataset``, with the same arguments, for photos as people have them.

    Hidden folders are no classes, links are followed without circles, and what ``data/images.py``
    calls a photo is one. Where names of classes are given, the folders of those names get their labels,
    and a class may have no folder; mmpretrain would number the folders that are there. Names
    that are no folders' go, as in mmpretrain, to the sorted folders in turn.

    Args:
        extensions: of the photos to take; by default all that can be read.
        folders: the class folders in the order of the labels, where they are not named as the classes are.

    Raises:
        ValueError: for a class folder that is none of the classes, or no photos.
    """

    def __init__(self, *args, extensions: Sequence[str] = SUFFIXES, folders: Sequence[str] | None = None, **kwargs):
        self.folders = folders
        super().__init__(*args, extensions=extensions, **kwargs)

    def _find_samples(self) -> list:
        root = Path(self.img_prefix)
        if not self.with_label:
            return list(images_below(root, self.extensions))
        inside, _ = photos_by_folder(root, self.extensions)
        if self.CLASSES is None:
            self._metainfo['classes'] = tuple(names_of_folders(inside))
        self.folder_to_idx = match_folders([*inside], self.folders or self.CLASSES, root, exact=bool(self.folders))
        samples = [(f'{folder}/{file}', self.folder_to_idx[folder]) for folder in inside for file in inside[folder]]
        if not samples:
            raise ValueError(
                f'{root}: no images in its class folders (looked for {", ".join(sorted(self.extensions))})'
            )
        return samples


def match_folders(present: Sequence[str], names: Sequence[str], root: Path, exact: bool = False) -> dict[str, int]:
    """The label of each class folder that is ``present``: its place in ``names``.

    Names of which none is a folder's, and as many, are names for show: the sorted folders get them in turn.

    Args:
        root: of the folders, for the message.
        exact: names are folders' in any case.

    Raises:
        ValueError: naming the folders that are none of ``names``.
    """
    labels, distinct = _places(names), names_of_folders(present)
    if len(distinct) == len(names) and not exact and labels.keys().isdisjoint(distinct):
        labels = _places(distinct)
    unknown = [folder for folder in present if nfc(folder) not in labels]
    if unknown:
        raise ValueError(
            f'{root}: class folders {quoted(unknown)} are none of the {len(names)} classes {quoted(names)}'
        )
    return {folder: labels[nfc(folder)] for folder in present}


def _places(names: Sequence[str]) -> dict[str, int]:
    """Where each name stands first; ImageNet has two cranes."""
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        places.setdefault(nfc(name), place)
    return places
