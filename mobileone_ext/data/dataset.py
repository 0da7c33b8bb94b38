"""mmpretrain's data set of class folders or an annotation file, over the one finder of photos, with classes by name."""

from collections.abc import Sequence
from pathlib import Path

from mmpretrain.datasets import CustomDataset as _CustomDataset

from ..registry import DATASETS
from .classes import quoted
from .images import SUFFIXES, class_folders, images_below


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
        present = class_folders(root)
        if self.CLASSES is None:
            self._metainfo['classes'] = tuple(present)
        self.folder_to_idx = match_folders(present, self.folders or self.CLASSES, root, exact=bool(self.folders))
        samples = [
            (f'{folder}/{file}', label)
            for folder, label in self.folder_to_idx.items()
            for file in images_below(root / folder, self.extensions)
        ]
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
    unknown = [folder for folder in present if folder not in names]
    if not unknown:
        return {folder: list(names).index(folder) for folder in present}
    if len(unknown) == len(present) == len(names) and not exact:
        return {folder: label for label, folder in enumerate(present)}
    raise ValueError(f'{root}: class folders {quoted(unknown)} are none of the {len(names)} classes {quoted(names)}')
