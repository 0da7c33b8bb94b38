"""A person's photos, however they are arranged: which file has which labels, and what is wrong with them.

Three arrangements are read: class folders; train/ and val/ (or valid, validation, dev, test) with class folders;
a CSV file with the columns ``file`` and ``label``, where a file may have several labels.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ...data.classes import quoted
from ...data.decode import decode, open_jpeg
from ...data.images import Images, class_folders, images_below
from .split import rarest, stratified_split

TRAIN = ('train', 'training')
VAL = ('val', 'valid', 'validation', 'dev', 'eval')
TEST = ('test', 'testing')


class Photo(NamedTuple):
    """``path`` below the root of its list, and names of ``labels``; in most lists there is one."""

    path: str
    labels: tuple[str, ...]


class PhotoList(NamedTuple):
    """``photos`` below the folder ``root``, both as the data set is to find them."""

    root: Path
    photos: list[Photo]


@dataclass(frozen=True)
class Photos:
    """What a run learns from and is measured by.

    Attributes:
        classes: names, sorted.
        train: photos to learn from.
        val: photos to measure on after each epoch; None before :func:`split`.
        test: photos for the report; None where ``val`` serves.
        several: whether a photo may have several labels, or none.
        notes: a line for each thing that a person should know.
    """

    classes: tuple[str, ...]
    train: PhotoList
    val: PhotoList | None = None
    test: PhotoList | None = None
    several: bool = False
    notes: tuple[str, ...] = field(default=())

    def lists(self) -> dict[str, PhotoList]:
        """The lists that are there, by name."""
        named = dict(train=self.train, val=self.val, test=self.test)
        return {name: part for name, part in named.items() if part is not None}


def read_photos(path: Path, val: Path | None = None) -> Photos:
    """The photos at ``path`` with their classes, nothing decoded yet.

    Args:
        val: another folder or CSV file, to measure on.

    Raises:
        OSError, ValueError: for a path that is not there, or without photos or classes.
    """
    if path.is_file():
        train, notes = read_csv(path)
        parts = {}
    else:
        parts = split_folders(path)
        train, notes = read_class_folders(parts.pop('train', path))
    if val:
        parts['val'] = val
    elif 'val' not in parts and 'test' in parts:
        parts['val'] = parts.pop('test')
    others = {}
    for name, place in parts.items():
        others[name], said = read_csv(place) if place.is_file() else read_class_folders(place)
        notes += said
    classes = _classes([train])
    if len(classes) < 2:
        raise ValueError(f'{path}: holds one class, {classes[0]!r}; there must be two or more to tell apart')
    for name, part in others.items():
        unknown = [label for label in _classes([part]) if label not in classes]
        if unknown:
            raise ValueError(
                f'{parts[name]}: has classes that {path} does not train: {quoted(unknown, 3)}; '
                f'name the folders as there ({quoted(classes, 3)})'
            )
        missing = [label for label in classes if label not in _classes([part])]
        if missing:
            notes.append(f'{parts[name]}: has no photos of {quoted(missing, 3)}')
    several = any(len(photo.labels) != 1 for part in (train, *others.values()) for photo in part.photos)
    return Photos(classes, train, others.get('val'), others.get('test'), several, tuple(notes))


def split_folders(root: Path) -> dict[str, Path]:
    """``train``, ``val`` and ``test`` of a folder that is split already; nothing for class folders.

    Raises:
        OSError: if there is no such folder.
        ValueError: for several folders of one kind.
    """
    if not root.exists():
        raise FileNotFoundError(f'{root}: no such folder of photos')
    folders = [root / name for name in class_folders(root)]
    found = {}
    for name, names in (('train', TRAIN), ('val', VAL), ('test', TEST)):
        matching = [folder for folder in folders if folder.name.lower() in names]
        if len(matching) > 1:
            raise ValueError(f'{root}: {matching[0].name} and {matching[1].name}: which one is it? Rename one')
        if matching and class_folders(matching[0]):  # a class may have such a name: then photos lie in it, no folders
            found[name] = matching[0]
    return found if 'train' in found else {}


def read_class_folders(root: Path) -> tuple[PhotoList, list[str]]:
    """The photos of ``root``/CLASS, at any depth below it, and notes about what was left out.

    Raises:
        ValueError: without class folders, or with an empty one.
    """
    folders = class_folders(root)
    if not folders:
        raise ValueError(
            f'{root}: holds {len(images_below(root)) or "no"} photos and no class folders; expected is '
            f'{root}/CLASS/*.jpg, or a CSV file of file,label'
        )
    photos, empty, left_out = [], [], Images()
    for name in folders:
        inside = images_below(root / name)
        photos += [Photo(f'{name}/{file}', (name,)) for file in inside]
        left_out.left_out += inside.left_out
        if not inside:
            empty.append(name)
    if empty:
        raise ValueError(f'{root}: no photos in {quoted(empty, 3)}; add some, or remove the folder')
    return PhotoList(root.absolute(), photos), [f'{root}: {left_out.note}'] if left_out.note else []


def read_csv(path: Path) -> tuple[PhotoList, list[str]]:
    """The photos that a CSV file names, relative to its folder.

    Columns ``file`` and ``label``; several labels of a file are separated by ``;`` or ``|``, or
    stand in several lines.

    Raises:
        ValueError: for other columns, an empty file, or a photo that is not there.
    """
    import csv

    with open(path, newline='', encoding='utf-8-sig') as file:
        rows = csv.DictReader(file)
        columns = {(name or '').strip().lower(): name for name in rows.fieldnames or ()}
        if not {'file', 'label'} <= set(columns):
            found = ','.join(rows.fieldnames or ['nothing'])
            raise ValueError(f'{path}: the first line must be file,label, not {found}')
        labels: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            name = (row[columns['file']] or '').strip()
            if name:
                text = (row[columns['label']] or '').replace('|', ';')
                labels[name] += [label.strip() for label in text.split(';') if label.strip()]
    root = path.absolute().parent
    if not any(labels.values()):
        raise ValueError(f'{path}: names no photo with a label')
    missing = [name for name in labels if not (root / name).is_file()]
    if missing:
        raise ValueError(f'{path}: {len(missing)} files are not there, relative to its folder: {quoted(missing, 3)}')
    return PhotoList(root, [Photo(name, tuple(dict.fromkeys(found))) for name, found in labels.items()]), []


def without_unreadable(photos: Photos) -> tuple[Photos, dict[str, dict[str, str]]]:
    """``photos`` that can be read, with a note on the others; and a digest of each, ``[list name][path]``.

    Raises:
        ValueError: if a class loses its last photo to train on.
    """
    digests, lists, notes = {}, {}, []
    for name, photo_list in photos.lists().items():
        checked = _check_all([photo_list.root / photo.path for photo in photo_list.photos])
        digests[name] = {photo.path: digest for photo, (digest, _) in zip(photo_list.photos, checked)}
        bad = [f'{photo.path} ({why})' for photo, (_, why) in zip(photo_list.photos, checked) if why]
        if bad:
            notes.append(f'{photo_list.root}: {len(bad)} unreadable, left out: {quoted(bad, 3)}')
        lists[name] = PhotoList(photo_list.root, [p for p, (_, why) in zip(photo_list.photos, checked) if not why])
    _check_none_lost(photos, lists['train'], '; '.join(notes))
    return replace(photos, **lists, notes=(*photos.notes, *notes)), digests


def without_contradictions(photos: Photos, digests: dict[str, dict[str, str]]) -> Photos:
    """``photos`` without those of which a copy, found by its bytes, has another label; with a note on them.

    Raises:
        ValueError: if a class loses its last photo to train on.
    """
    if photos.several:
        return photos
    labels: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for name, photo_list in photos.lists().items():
        for photo in photo_list.photos:
            labels[digests[name][photo.path]].add(photo.labels)
    lists, bad = {}, []
    for name, photo_list in photos.lists().items():
        clear = [photo for photo in photo_list.photos if len(labels[digests[name][photo.path]]) == 1]
        bad += [str(photo_list.root / photo.path) for photo in photo_list.photos if photo not in clear]
        lists[name] = PhotoList(photo_list.root, clear)
    if not bad:
        return photos
    note = f'{len(bad)} photos left out: the same photo under two labels: {quoted(sorted(bad), 3)}'
    _check_none_lost(photos, lists['train'], note)
    return replace(photos, **lists, notes=(*photos.notes, note))


def _check_none_lost(photos: Photos, kept: PhotoList, why: str) -> None:
    lost = [label for label in photos.classes if label not in _classes([kept])]
    if lost:
        raise ValueError(f'nothing of {quoted(lost, 3)} is left to train on: {why}')


def without_repeats(photos: Photos, digests: dict[str, dict[str, str]]) -> Photos:
    """``photos`` whose training part has none of those to measure on, with a note on each kind of copy."""
    others = {name: part for name, part in photos.lists().items() if name != 'train'}
    measured = {digests[name][photo.path] for name, part in others.items() for photo in part.photos}
    own = digests['train']
    kept = [photo for photo in photos.train.photos if own[photo.path] not in measured]
    repeated = [photo.path for photo in photos.train.photos if own[photo.path] in measured]
    notes = list(photos.notes)
    if repeated:
        notes.append(
            f'{photos.train.root}: {len(repeated)} photos are also among those to measure on, so they are '
            f'not trained on: {quoted(repeated, 3)}'
        )
    copies = len(kept) - len({own[photo.path] for photo in kept})
    if copies:
        notes.append(f'{photos.train.root}: {copies} photos are copies of others')
    _check_none_lost(photos, PhotoList(photos.train.root, kept), '; '.join(notes))
    return replace(photos, train=PhotoList(photos.train.root, kept), notes=tuple(notes))


def split(photos: Photos, fraction: float, seed: int, digests: dict[str, dict[str, str]]) -> Photos:
    """``photos`` with ``fraction`` of the training part set aside to measure on, copies of a photo on one side.

    Raises:
        ValueError: for a class with one photo.
    """
    part = photos.train.photos
    classes = rarest([photo.labels for photo in part])
    groups = [digests['train'][photo.path] for photo in part]
    different = defaultdict(set)
    for photo, group in zip(part, groups):
        for label in photo.labels:
            different[label].add(group)
    lonely = [label for label in photos.classes if len(different[label]) < 2]
    if lonely:
        raise ValueError(
            f'{photos.train.root}: one photo alone of {quoted(lonely, 3)}, and it takes one to train on and one to '
            'measure on; add photos, remove the class, or name others to measure on by --val DIR'
        )
    train, val = stratified_split(classes, groups, fraction, seed)
    root = photos.train.root
    return replace(photos, train=PhotoList(root, [part[i] for i in train]), val=PhotoList(root, [part[i] for i in val]))


def without_unwritable(photos: Photos) -> Photos:
    """``photos`` whose names an annotation file can hold, with a note on the others."""
    lists, notes = {}, []
    for name, photo_list in photos.lists().items():
        bad = [photo for photo in photo_list.photos if not _is_plain(photo.path)]
        if bad:
            names = quoted([photo.path.encode('utf-8', 'replace').decode() for photo in bad], 3)
            notes.append(f'{photo_list.root}: {len(bad)} left out, odd characters in the name: {names}')
        lists[name] = PhotoList(photo_list.root, [photo for photo in photo_list.photos if _is_plain(photo.path)])
    _check_none_lost(photos, lists['train'], '; '.join(notes))
    return replace(photos, **lists, notes=(*photos.notes, *notes))


def _is_plain(name: str) -> bool:
    try:
        name.encode('utf-8')
    except UnicodeEncodeError:
        return False
    return name.isprintable() and name == name.strip()


def _check_all(files: Sequence[Path]) -> list[tuple[str, str]]:
    """The digest of each file and why it cannot be read, or ``''``."""
    from rich.progress import track

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(track(pool.map(_check, files), 'checking photos', len(files), transient=True))


def _check(file: Path) -> tuple[str, str]:
    digest = ''
    try:
        data = file.read_bytes()
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        jpeg = open_jpeg(data)
        if jpeg:
            jpeg.decode(8)  # reads all of the file, in a fraction of the time
        else:
            decode(data)
    except Exception as error:  # a decoder raises what it likes
        return digest or str(file), next(iter(str(error).splitlines()), type(error).__name__)[:80]
    return digest, ''


def _classes(lists: Iterable[PhotoList]) -> tuple[str, ...]:
    return tuple(sorted({label for part in lists for photo in part.photos for label in photo.labels}))
