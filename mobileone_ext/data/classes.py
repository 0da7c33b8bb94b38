"""Classes by name: where their names come from, and what two places that name them have to agree on.

Names come from a checkpoint, an annotation file, ``metainfo``, the type of a data set or
the folders that photos lie in. A label is an index into one such list, so lists in
another order would shift every label without a word.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmengine.config import Config
from mmpretrain.datasets.categories import IMAGENET_CATEGORIES
from mmpretrain.registry import DATASETS

from ..text import abbreviate
from .images import class_folders, leaves

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def num_classes(config: Config) -> int | None:
    """Of the config's head; None for a head that does not say."""
    return (config.model.get('head') or {}).get('num_classes')


def is_multi_label(config: Config) -> bool:
    """Whether the config's head gives every label a score of its own, so that an image may have several."""
    return str((config.model.get('head') or {}).get('type', '')).split('.')[-1].startswith('MultiLabel')


def class_names(config: Config, stored: Sequence[str] | None = None, published: bool = False) -> list[str] | None:
    """Names of the classes that the config's network tells apart, in the order of its outputs; None if nothing says.

    Args:
        stored: the names that its checkpoint has; it knows best, then the data sets of the config.
        published: its weights are as Apple or timm published them, without names and trained on ImageNet.
    """
    count = num_classes(config)
    sources = [stored]
    for loader in LOADERS:
        sources += [names_of(dataset) for dataset in leaves((config.get(loader) or {}).get('dataset') or {})]
    if published:
        sources.append(IMAGENET_CATEGORIES)
    return next((list(names) for names in sources if names and len(names) == count), None)


def labels(names: Sequence[str] | None, count: int) -> list[str]:
    """``names``, or numbers where there are none."""
    return list(names) if names and len(names) == count else [str(index) for index in range(count)]


def names_of(dataset: dict) -> tuple[str, ...] | None:
    """Class names of a data set, from its config and its files alone; None if neither tells."""
    names = given_names(dataset) or getattr(dataset_class(dataset), 'METAINFO', {}).get('classes')
    folder = scanned_folder(dataset)
    if not names and folder is not None and folder.is_dir():
        names = class_folders(folder)
    return tuple(names) if names else None


def classes_in(dataset: dict) -> tuple[str, ...]:
    """The classes that the files of a data set hold, whatever its config or its type says of them.

    Names are those of its class folders. The images of a list have names where each label has a folder of its own, or
    where the config names as many; else labels are their own names.

    Raises:
        OSError: if there are no such files.
        ValueError: if they hold fewer than two classes, or labels that no image has.
    """
    folder, file = scanned_folder(dataset), annotation_file(dataset)
    place = folder or file
    if folder is not None:
        if not folder.is_dir():
            raise FileNotFoundError(f'{folder}: no such folder of class folders; --data ROOT names the one it lies in')
        names = class_folders(folder)
    elif file is not None and file.suffix != '.json':
        listed, given = _classes_listed(file), given_names(dataset) or ()
        names = given if len(given) == len(listed) else listed
    else:
        names = names_of(dataset) or ()
    if len(names) < 2:
        raise ValueError(
            f'{place or dataset.get("type")}: holds {len(names) or "no"} class folders or names of classes'
        )
    return tuple(names)


def _classes_listed(file: Path) -> list[str]:
    """Names for the labels of a text file with a line ``image label`` for each image."""
    folders = defaultdict(set)
    for line in read_lines(file):
        image, _, label = line.strip().rpartition(' ')
        if label.isdecimal():
            folders[int(label)].add(image.rpartition('/')[0])
    absent = next((label for label in range(len(folders)) if label not in folders), None)
    if absent is not None:
        raise ValueError(f'{file}: no image has label {absent}, some have label {max(folders)}')
    numbers = list(map(str, range(len(folders))))
    names = [folders[label].pop() if len(folders[label]) == 1 else '' for label in range(len(folders))]
    return names if all(names) and len(set(names)) == len(names) else numbers


def read_lines(file: Path) -> list[str]:
    """The lines of a text file; ValueError, naming it, where it is no UTF-8."""
    try:
        return file.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f'{file}: not UTF-8 text ({error.reason} at byte {error.start})') from None


def dataset_class(dataset: dict) -> type | None:
    """What builds a data set of this config; None for a type that nothing registers."""
    kind = dataset.get('type')
    return DATASETS.get(kind) if isinstance(kind, str) else kind


def given_names(dataset: dict) -> tuple[str, ...] | None:
    """Names that a data set's config gives itself: ``classes``, ``metainfo`` or an OpenMMLab annotation file."""
    names = dataset.get('classes') or (dataset.get('metainfo') or {}).get('classes')
    if isinstance(names, str):
        return tuple(Path(names).expanduser().read_text(encoding='utf-8').split('\n')[:-1] or ())
    if names:
        return tuple(names)
    file = annotation_file(dataset)
    if file is not None and file.suffix == '.json' and file.is_file():
        stored = json.loads(file.read_text(encoding='utf-8'))
        names = (stored.get('metainfo') or {}).get('classes') if isinstance(stored, dict) else None
        return tuple(map(str, names)) if names else None
    return None


def annotation_file(dataset: dict) -> Path | None:
    """Where the annotation file of a data set lies; None without one."""
    name, root = dataset.get('ann_file'), dataset.get('data_root') or ''
    split = dataset.get('split')
    if not name and split and Path(root, 'meta', f'{split}.txt').exists():  # mmpretrain's ImageNet looks there
        name = f'meta/{split}.txt'
    return Path(root, name).expanduser() if name else None


def scanned_folder(dataset: dict) -> Path | None:
    """The folder whose class folders name the classes of a data set; None if it does not go by folders."""
    from mmpretrain.datasets import CustomDataset

    kind = dataset_class(dataset)
    if not (isinstance(kind, type) and issubclass(kind, CustomDataset)) or dataset.get('with_label') is False:
        return None
    prefix = dataset.get('data_prefix') or dataset.get('split') or ''
    if isinstance(prefix, dict):
        prefix = prefix.get('img_path', '')
    if annotation_file(dataset) is not None or not isinstance(prefix, str):
        return None
    return Path(dataset.get('data_root') or '', prefix).expanduser()


def are_same(names: Sequence[str] | None, reference: Sequence[str] | None) -> bool:
    """Whether both lists name the same classes in the same order, or one is not known.

    WordNet ids and ImageNet's names are the same.
    """
    if not names or not reference or list(names) == list(reference):
        return True
    thousand = len(names) == len(reference) == len(IMAGENET_CATEGORIES)
    return thousand and _are_wordnet(names) != _are_wordnet(reference)


def check_same(names: Sequence[str] | None, reference: Sequence[str] | None, where: str, other: str) -> None:
    """Raise ValueError, naming the first class that differs, unless :func:`are_same`.

    Args:
        where, other: what has ``names`` and ``reference``, for the message.
    """
    if are_same(names, reference):
        return
    unknown = [name for name in names if name not in reference]
    if unknown:
        raise ValueError(f'{where}: {quoted(unknown)} not among the classes of {other} ({quoted(reference)})')
    missing = [name for name in reference if name not in names]
    if missing:
        raise ValueError(f'{where}: has {len(names)} classes, {other} has {quoted(missing)} as well')
    index = next(i for i, (name, expected) in enumerate(zip(names, reference)) if name != expected)
    raise ValueError(
        f'{where}: class {index} is {names[index]!r}, in {other} it is {reference[index]!r}: '
        'the same classes in another order'
    )


def _are_wordnet(names: Sequence[str]) -> bool:
    return all(re.fullmatch(r'n\d{8}', name) for name in names) and list(names) == sorted(names)


def quoted(names: Iterable[str], count: int = 5) -> str:
    """The first ``count`` of ``names``, quoted, and how many more."""
    return abbreviate(map(repr, names), count)
