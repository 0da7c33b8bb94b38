"""Classes by name: where their names come from, and what two places that name them have to agree on.

Names come from a checkpoint, an annotation file, ``metainfo``, the type of a data set or
the folders that photos lie in. A label is an index into one such list, so lists in
another order would shift every label without a word.
"""

import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path

from mmengine.config import Config
from mmpretrain.datasets.categories import IMAGENET_CATEGORIES
from mmpretrain.registry import DATASETS

from ..files import suffix_of
from ..text import nfc, quoted, type_name
from .images import class_folders, names_of_folders, photos_by_folder
from .nested import datasets_of
from .parts import check_are_classes
from .shards import Shards, names_of_labels, photos_at

_IMAGENET_IDS = '791ce0333040dd24'  # of the digest of the thousand WordNet ids
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def num_classes(config: Config) -> int | None:
    """Of the config's head, or of a network of timm's or Hugging Face's as a whole; None if neither says."""
    return (config.model.get('head') or config.model).get('num_classes')


def is_multi_label(config: Config) -> bool:
    """Whether the config's head gives every label a score of its own, so that an image may have several."""
    return type_name(config.model.get('head')).startswith('MultiLabel')


def class_names(config: Config, stored: Sequence[str] | None = None, published: bool = False) -> list[str] | None:
    """Names of the classes that the config's network tells apart, in the order of its outputs; None if nothing says.

    Args:
        stored: the names that its checkpoint has; it knows best, then the data sets of the config.
        published: its weights are as Apple or timm published them, without names and trained on ImageNet.
    """
    count = num_classes(config)

    def sources() -> Iterator[Sequence[str] | None]:
        yield stored
        for dataset, _ in datasets_of(config, *LOADERS):
            yield names_of(dataset)
        if published:
            yield IMAGENET_CATEGORIES

    return next((list(names) for names in sources() if names and len(names) == count), None)


def labels(names: Sequence[str] | None, count: int) -> list[str]:
    """``names``, or numbers where there are none."""
    return list(names) if names and len(names) == count else [str(index) for index in range(count)]


def names_of(dataset: dict) -> tuple[str, ...] | None:
    """Class names of a data set, from its config and its files alone; None if neither tells."""
    names = given_names(dataset) or getattr(dataset_class(dataset), 'METAINFO', {}).get('classes')
    folder = scanned_folder(dataset)
    if not names and folder is not None and folder.is_dir():
        names = names_of_folders(class_folders(folder))
    if not names and (shards := shards_of(dataset)):
        names = names_of_labels({label for *_, label in photos_at(shards)})
    return tuple(map(nfc, names)) if names else None


def classes_in(dataset: dict) -> tuple[str, ...]:
    """The classes that the files of a data set hold, whatever its config or its type says of them.

    Names are those of its class folders. The images of a list have names where each label has a folder of its own, or
    where the config names as many; else labels are their own names. Those of shards may be names.

    Raises:
        OSError: if there are no such files.
        ValueError: if they hold fewer than two classes, or labels that no image has.
    """
    folder, file, shards = scanned_folder(dataset), annotation_file(dataset), shards_of(dataset)
    place = folder or file or shards
    if folder is not None:
        inside, _ = photos_by_folder(folder)
        check_are_classes(folder, inside)
        names = names_of_folders(inside)
    elif file is not None and suffix_of(file) != '.json':
        listed, given = _classes_listed(file), given_names(dataset) or ()
        names = given if len(given) == len(listed) else listed
    elif shards is not None:
        labels = {label for *_, label in photos_at(shards)}
        listed, given = names_of_labels(labels), given_names(dataset) or ()
        listed = listed or [*map(str, range(max(labels) + 1))]
        names = given if len(given) == len(listed) else listed
    else:
        names = names_of(dataset) or ()
    if len(names) < 2:
        held = f'one class alone, {quoted(names)}' if names else 'no classes'
        raise ValueError(f'{place or dataset.get("type")}: holds {held}, and it takes two to tell apart')
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


def dataset_class(dataset: dict) -> type | None:
    """What builds a data set of this config; None for a type that nothing registers."""
    kind = dataset.get('type')
    return DATASETS.get(kind) if isinstance(kind, str) else kind


def given_names(dataset: dict) -> tuple[str, ...] | None:
    """Names that a data set's config gives itself: ``classes``, ``metainfo`` or an OpenMMLab annotation file."""
    names = dataset.get('classes') or (dataset.get('metainfo') or {}).get('classes')
    if isinstance(names, str):
        names = read_lines(Path(names).expanduser())
    file = annotation_file(dataset)
    if not names and file is not None and suffix_of(file) == '.json' and file.is_file():
        stored = read_json(file)
        names = (stored.get('metainfo') or {}).get('classes') if isinstance(stored, dict) else None
    return tuple(nfc(str(name)) for name in names) if names else None


def read_text(file: Path, encoding: str = 'utf-8') -> str:
    """The text of a file that lists images or classes; most libraries take it for plain UTF-8.

    Raises:
        ValueError: naming the file if it is none; OSError if it is not there.
    """
    try:
        text = file.read_text(encoding)
    except UnicodeError as error:
        line = error.object.count(b'\n', 0, error.start) + 1
        raise ValueError(f'{file}, line {line}: not UTF-8 text ({error.reason}); save it as UTF-8') from None
    if text.startswith('\ufeff'):
        raise ValueError(f'{file}: begins with a byte order mark; save it as UTF-8 without one')
    return text


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, as mmengine's ``list_from_file``; errors as in :func:`read_text`."""
    return [line.rstrip('\r\n') for line in io.StringIO(read_text(file), newline='\n')]


def read_json(file: Path) -> object:
    """What a JSON file holds; errors as in :func:`read_text`."""
    text = read_text(file)
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f'{file}: not JSON ({error})') from None


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


def shards_of(dataset: dict) -> Path | None:
    """The folder or pattern of the tar shards of a data set; None if it has none."""
    kind = dataset_class(dataset)
    if not (isinstance(kind, type) and issubclass(kind, Shards)):
        return None
    return Path(dataset.get('data_root') or '', dataset.get('data_prefix') or dataset.get('split') or '').expanduser()


def are_same(names: Sequence[str] | None, reference: Sequence[str] | None) -> bool:
    """Whether both lists name the same classes in the same order, or one is not known.

    ImageNet's WordNet ids and its names are the same, and so are letters composed and decomposed.
    """
    if not names or not reference:
        return True
    return [*map(nfc, names)] == [*map(nfc, reference)] or (are_imagenet(names) and are_imagenet(reference))


def are_imagenet(names: Sequence[str]) -> bool:
    """Whether these are the thousand classes of ImageNet in its order, as WordNet ids or by mmpretrain's names."""
    if are_wordnet(names):
        return sha256(' '.join(names).encode()).hexdigest()[:16] == _IMAGENET_IDS
    return list(names) == list(IMAGENET_CATEGORIES)


def check_same(names: Sequence[str] | None, reference: Sequence[str] | None, where: str, other: str) -> None:
    """Raise ValueError, naming the first class that differs, unless :func:`are_same`.

    Args:
        where, other: what has ``names`` and ``reference``, for the message.
    """
    if are_same(names, reference):
        return
    names, reference = [*map(nfc, names)], [*map(nfc, reference)]
    known, present = set(reference), set(names)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f'{where}: {quoted(unknown)} not among the classes of {other} ({quoted(reference)})')
    missing = [name for name in reference if name not in present]
    if missing:
        raise ValueError(f'{where}: has {len(names)} classes, {other} has {quoted(missing)} as well')
    pairs = enumerate(zip_longest(names, reference))
    index, (name, expected) = next((index, pair) for index, pair in pairs if pair[0] != pair[1])
    raise ValueError(
        f'{where}: class {index} is {quoted([name])}, in {other} it is {quoted([expected])}: '
        'the same classes in another order'
    )


def are_wordnet(names: Sequence[str]) -> bool:
    """Whether all ``names`` are WordNet ids."""
    return all(re.fullmatch(r'n\d{8}', name) for name in names)


def twins_note(folders: Iterable[str]) -> str:
    """A line on folders of one directory that name the same class; empty if none do."""
    twins = [name for name, count in Counter(map(nfc, folders)).items() if count > 1]
    return f'folders that differ only in how letters are composed are one class: {quoted(twins)}' if twins else ''
