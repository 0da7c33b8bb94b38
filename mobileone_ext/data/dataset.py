"""mmpretrain's data set of class folders or an annotation file, over the one finder of photos, with classes by name."""

from collections.abc import Sequence
from pathlib import Path

from mmpretrain.datasets import CustomDataset as _CustomDataset
from mmpretrain.datasets.categories import IMAGENET_CATEGORIES

from ..registry import DATASETS
from ..text import nfc, quoted
from .classes import are_imagenet, are_wordnet, read_lines, twins_note
from .images import SUFFIXES, images_below, left_out_note, names_of_folders, photos_by_folder
from .parts import check_are_classes


@DATASETS.register_module()
class CustomDataset(_CustomDataset):
    """mmpretrain's ``CustomDataset``, with the same arguments, for photos as people have them.

    Hidden folders are no classes, links are followed without circles, and what ``data/images.py``
    calls a photo is one. Where names of classes are given, the folders of those names get their labels,
    and a class may have no folder; mmpretrain would number the folders that are there. Names
    that are no folders' go, as in mmpretrain, to the sorted folders in turn.

    Args:
        extensions: of the photos to take; by default all that can be read.
        exact: whether the names of classes are folders' in any case.

    Attributes:
        notes: lines about what was left out.
        empty: classes without photos, where they go by folders.

    Raises:
        ValueError: for a class folder that is none of the classes, a line without image and label, or no photos.
    """

    def __init__(self, *args, extensions: Sequence[str] = SUFFIXES, exact: bool = False, **kwargs):
        self.exact, self.notes, self.empty = exact, [], []
        super().__init__(*args, extensions=extensions, **kwargs)

    def load_data_list(self) -> list[dict]:
        """mmpretrain's, which would take a negative label, and does not name the line that it fails at."""
        for number, line in enumerate(read_lines(Path(self.ann_file)) if self.ann_file else (), 1):
            image, _, label = line.strip().rpartition(' ')
            if self.with_label and not (image and label.isdecimal()):
                raise ValueError(
                    f'{self.ann_file}, line {number}: {line[:80]!r}: expected is an image and its label, "a/b.jpg 3"'
                )
        samples = super().load_data_list()
        if not samples:
            folder = Path(self.img_prefix)
            raise ValueError(
                f'{self.ann_file or folder}: no images; expected are {folder}/CLASS/*.jpg (or '
                f'{", ".join(sorted(self.extensions))}), or an annotation file that lists some'
            )
        return samples

    def _find_samples(self) -> list:
        root = Path(self.img_prefix)
        if not self.with_label:
            return list(images_below(root, self.extensions))
        inside, left_out = photos_by_folder(root, self.extensions)
        self.notes = [note for note in (left_out_note(left_out), twins_note(inside)) if note]
        if self.CLASSES is None:
            check_are_classes(root, inside)
            self._metainfo['classes'] = tuple(names_of_folders(inside))
        self.folder_to_idx = match_folders([*inside], self.CLASSES, root, self.exact)
        filled = {self.folder_to_idx[folder] for folder, files in inside.items() if files}
        self.empty = [name for label, name in enumerate(self.CLASSES) if label not in filled]
        return [(f'{folder}/{file}', self.folder_to_idx[folder]) for folder in inside for file in inside[folder]]


@DATASETS.register_module()
class ImageNet(CustomDataset):
    """The thousand classes of ImageNet by their names, in folders of WordNet ids or in an annotation file."""

    METAINFO = {'classes': IMAGENET_CATEGORIES}


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
    foreign = are_wordnet(distinct) and are_imagenet(names) and not are_imagenet(distinct)
    if len(distinct) == len(names) and not exact and not foreign and labels.keys().isdisjoint(distinct):
        labels = _places(distinct)
    unknown = [folder for folder in present if nfc(folder) not in labels]
    if unknown:
        raise ValueError(
            f'{root}: class folders {quoted(unknown)} are none of the {len(names)} classes {quoted(names)}; a folder '
            'has the name of its class (--classes-from-data trains the classes that there are)'
        )
    return {folder: labels[nfc(folder)] for folder in present}


def _places(names: Sequence[str]) -> dict[str, int]:
    """Where each name stands first; ImageNet has two cranes."""
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        places.setdefault(nfc(name), place)
    return places
