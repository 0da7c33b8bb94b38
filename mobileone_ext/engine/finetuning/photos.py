"""A person's photos, however they are arranged: which file has which labels, and what is wrong with them.

Three arrangements are read: class folders; the parts of a split, each with class folders; a CSV file with the
columns ``file`` and ``label``, where a file may have several labels.
"""

import csv
import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ...data.classes import read_text, twins_note
from ...data.decode import read_pixels
from ...data.images import class_folders, find_images, images_below, left_out_note, photos_by_folder
from ...data.parts import find_parts
from ...text import fits_a_line, nfc, one_line, printable, quoted, with_progress
from .split import rarest, stratified_split

_UTF_16 = (b'\xff\xfe', b'\xfe\xff')  # the marks that such a file begins with
_STEP = 32  # pixels of a photo to one of the last map: sizes are multiples


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
        multi_label: whether a photo may have several labels, or none.
        others: photos of none of the classes; None without them.
        notes: a line for each thing that a person should know.
    """

    classes: tuple[str, ...]
    train: PhotoList
    val: PhotoList | None = None
    test: PhotoList | None = None
    multi_label: bool = False
    others: PhotoList | None = None
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
    given = dict(val=val) if val else {}
    find_images([path, *given.values()])  # or it says what is not there
    parts, notes = (dict(train=path, **given), []) if path.is_file() else split_folders(path, given)
    lists = {}
    for name, place in parts.items():
        lists[name], said = read_csv(place) if place.is_file() else read_class_folders(place)
        notes += said
    train = lists['train']
    classes = _classes([train])
    if len(classes) < 2:
        raise ValueError(
            f'{path}: holds {f"one class, {quoted(classes)}" if classes else "no classes"}, and it takes two to tell '
            f'apart; expected is {path}/CLASS/*.jpg, or a CSV file of file,label'
        )
    for name, part in lists.items():
        present = _classes([part])
        unknown = sorted({*present} - {*classes})
        if unknown:
            raise ValueError(
                f'{parts[name]}: has classes that {path} does not train: {quoted(unknown, 3)}; '
                f'name the folders as there ({quoted(classes, 3)})'
            )
        missing = sorted({*classes} - {*present})
        if missing:
            notes.append(f'{parts[name]}: has no photos of {quoted(missing, 3)}')
    odd = {'several labels': [], 'no label': []}
    for part in lists.values():
        for photo in part.photos:
            if len(photo.labels) != 1:
                odd['several labels' if photo.labels else 'no label'].append(part.root / photo.path)
    said = [f'{len(paths)} photos have {what} (the first is {paths[0]})' for what, paths in odd.items() if paths]
    if said:
        notes.append(f'multi-label, a score of its own for every label: {" and ".join(said)}')
    return Photos(classes, train, lists.get('val'), lists.get('test'), bool(said), notes=tuple(notes))


def split_folders(root: Path, given: dict[str, Path]) -> tuple[dict[str, Path], list[str]]:
    """Where the photos to train on lie and, if ``root`` has some or they are ``given``, those to measure on; and notes.

    Raises:
        ValueError: if it is not clear whether the folders of ``root`` are classes or the parts of a split.
    """
    inside, _ = photos_by_folder(root)
    try:
        own = find_parts(root, inside)
    except ValueError:
        if not given:
            raise
        own = {}  # if these are no classes, those of the photos to measure on are others
    parts = {**(own or dict(train=root)), **given}
    if 'val' not in parts and 'test' in parts:
        parts['val'] = parts.pop('test')
    if not own:
        return parts, []
    used = {place.relative_to(root).parts[0] for place in parts.values() if place in own.values()}
    left_out = class_folders(root).left_out
    left_out.update({f"photos in '{printable(name)}'": len(inside[name]) for name in inside if name not in used})
    named = ', '.join(f'{name}: {place}' for name, place in parts.items())
    return parts, [f'{root}: a split ({named})', *([f'{root}: {left_out_note(left_out)}'] if left_out else [])]


def read_class_folders(root: Path) -> tuple[PhotoList, list[str]]:
    """The photos of ``root``/CLASS, at any depth below it, and notes about what was left out.

    Raises:
        ValueError: for an empty class folder; OSError if there is no such folder.
    """
    inside, left_out = photos_by_folder(root)
    filled = {nfc(name) for name, files in inside.items() if files}
    empty = [name for name in inside if nfc(name) not in filled]
    if empty:
        raise ValueError(f'{root}: no photos in {quoted(empty, 3)}; add some, or remove the folder')
    photos = [Photo(f'{name}/{file}', (nfc(name),)) for name, files in inside.items() for file in files]
    notes = [note for note in (left_out_note(left_out), twins_note(inside)) if note]
    return PhotoList(root.absolute(), photos), [f'{root}: {note}' for note in notes]


def read_csv(path: Path) -> tuple[PhotoList, list[str]]:
    """The photos that a CSV file names, relative to its folder.

    Columns ``file`` and ``label``, in UTF-8 or in UTF-16 with its mark; several labels of a file are separated by
    ``;`` or stand in several lines.

    Raises:
        ValueError: naming the file, and the line that is none of these, or photos that are not there.
    """
    with open(path, 'rb') as file:
        encoding = 'utf-16' if file.read(2) in _UTF_16 else 'utf-8-sig'
    rows = csv.DictReader(io.StringIO(read_text(path, encoding), newline=''), strict=True)
    labels: dict[str, list[str]] = defaultdict(list)
    try:
        columns = {(name or '').strip().lower(): name for name in rows.fieldnames or ()}
        if not {'file', 'label'} <= set(columns):
            raise ValueError(f'{path}: the first line must be file,label, not {",".join(columns)[:80] or "nothing"}')
        for row in rows:
            name, label = ((row[columns[column]] or '').strip() for column in ('file', 'label'))
            if None in row:
                raise ValueError(f'{path}, line {rows.line_num}: more values than columns; one with a comma is quoted')
            if not fits_a_line(label):
                raise ValueError(f'{path}, line {rows.line_num}: {label[:80]!r}: a label stands on one line')
            if name:
                labels[name] += [nfc(one.strip()) for one in label.split(';') if one.strip()]
    except csv.Error as error:
        raise ValueError(f'{path}, line {rows.line_num + 1}: not CSV ({error}); are the quotes balanced?') from None
    root = path.absolute().parent
    files = {name: name for name in labels if os.path.isfile(root / name)}
    if len(files) < len(labels):
        there = {nfc(name): name for name in images_below(root, suffixes=('',))}
        files |= {name: there[nfc(name)] for name in labels if name not in files and nfc(name) in there}
    missing = [name for name in labels if name not in files]
    if missing:
        raise ValueError(f'{path}: {len(missing)} files are not there, relative to its folder: {quoted(missing, 3)}')
    return PhotoList(root, [Photo(files[name], tuple(dict.fromkeys(named))) for name, named in labels.items()]), []


def without_unreadable(photos: Photos, size: int = 0, whole: bool = False) -> tuple[Photos, dict[str, dict[str, str]]]:
    """``photos`` that can be read, with a note on the others; and a digest of each, ``[list name][path]``.

    Args:
        size: a note says how many are smaller, in pixels, and what fits them.
        whole: the longer edge tells that, not the shorter one.

    Raises:
        ValueError: if a class loses its last photo to train on.
    """
    digests, bad, notes, edges = {}, {}, [], []
    for name, (root, part) in photos.lists().items():
        read = dict(zip((photo.path for photo in part), _read_all([root / photo.path for photo in part])))
        digests[name] = {path: digest for path, (digest, *_) in read.items()}
        bad[name] = {path: reason for path, (_, reason, _) in read.items() if reason}
        edges += [max(sides) if whole else min(sides) for *_, sides in read.values() if sides]
        if bad[name]:
            listed = (f'{path} ({reason})' for path, reason in bad[name].items())
            notes.append(f'{root}: {len(bad[name])} unreadable, left out: {quoted(listed, 3)}')
    small = sorted(edge for edge in edges if edge < size)
    if small:
        middle = small[len(small) // 2]
        notes.append(
            f'{len(small)} of {len(edges)} photos are smaller than {size} px, half of these {middle} px or less; '
            f'--image-size {max(_STEP, middle // _STEP * _STEP)} fits them'
        )
    return _without(photos, bad, notes), digests


def without_contradictions(photos: Photos, digests: dict[str, dict[str, str]]) -> Photos:
    """``photos`` without those of which a copy, found by its bytes, has another label; with a note on them.

    Raises:
        ValueError: if a class loses its last photo to train on.
    """
    if photos.multi_label:
        return photos
    labels: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for name, (_, part) in photos.lists().items():
        for photo in part:
            labels[digests[name][photo.path]].add(photo.labels)
    twice = {digest for digest, given in labels.items() if len(given) > 1}
    bad = {name: {path for path, digest in read.items() if digest in twice} for name, read in digests.items()}
    paths = sorted(str(root / path) for name, (root, _) in photos.lists().items() for path in bad[name])
    note = f'{len(paths)} photos left out: the same photo under two labels: {quoted(paths, 3)}'
    return _without(photos, bad, [note]) if paths else photos


def without_repeats(photos: Photos, digests: dict[str, dict[str, str]]) -> Photos:
    """``photos`` whose training part has none of those to measure on, with a note on each kind of copy.

    Raises:
        ValueError: if a class loses its last photo to train on.
    """
    others = {name: part for name, part in photos.lists().items() if name != 'train'}
    measured = {digests[name][photo.path] for name, (_, part) in others.items() for photo in part}
    (root, part), own, notes = photos.train, digests['train'], []
    repeated = [photo.path for photo in part if own[photo.path] in measured]
    if repeated:
        notes.append(
            f'{root}: {len(repeated)} photos are also among those to measure on, so they are not trained on: '
            f'{quoted(repeated, 3)}'
        )
    copies = len(part) - len(repeated) - len({own[photo.path] for photo in part} - measured)
    if copies:
        notes.append(f'{root}: {copies} photos are copies of others')
    return _without(photos, dict(train={*repeated}), notes)


def _without(photos: Photos, bad: Mapping[str, Collection[str]], notes: Sequence[str]) -> Photos:
    """``photos`` without the paths that are ``bad`` in each list, and with ``notes`` on them.

    Raises:
        ValueError: if a class loses its last photo to train on.
    """
    lists = {
        name: PhotoList(root, [photo for photo in part if photo.path not in bad.get(name, ())])
        for name, (root, part) in photos.lists().items()
    }
    lost = sorted({*photos.classes} - {*_classes([lists['train']])})
    if lost:
        raise ValueError(f'nothing of {quoted(lost, 3)} is left to train on: {"; ".join(notes)}')
    return replace(photos, **lists, notes=(*photos.notes, *notes))


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
    """``photos`` whose paths can stand in a line of an annotation file, with a note on the others.

    Raises:
        ValueError: if a class loses its last photo to train on.
    """
    bad, notes = {}, []
    for name, (root, part) in photos.lists().items():
        bad[name] = dict.fromkeys(photo.path for photo in part if not fits_a_line(photo.path))
        if bad[name]:
            odd = 'line ends, control characters or stray bytes in the name'
            notes.append(f'{root}: {len(bad[name])} left out, {odd}: {quoted(bad[name], 3)}')
    return _without(photos, bad, notes)


def with_others(photos: Photos, folder: Path, digests: dict[str, dict[str, str]]) -> Photos:
    """``photos`` and, beside them, those below ``folder`` that are of none of the classes; a note on what is left out.

    Raises:
        OSError: if there is no such folder.
        ValueError: if it has no photos, a folder in it has the name of a class, or no photo is left.
    """
    root, listing = folder.absolute(), find_images(folder)
    found = [path.relative_to(folder).as_posix() for path in listing]
    named = sorted({nfc(path.split('/')[0]) for path in found if '/' in path} & {*photos.classes})
    if named:
        raise ValueError(f'--others {folder}: holds folders of the classes {quoted(named, 3)}; it is for none of these')
    known = {digest for read in digests.values() for digest in read.values()}
    read = dict(zip(found, _read_all([root / path for path in found])))
    good = {path for path, (_, reason, _) in read.items() if not reason}
    own = {path for path in good if read[path][0] in known}
    counts = {'photos that have a class too': len(own), 'unreadable': len(found) - len(good), **listing.left_out}
    note = left_out_note(Counter({what: count for what, count in counts.items() if count}))
    if good == own:
        raise ValueError(f'--others {folder}: holds no photo of none of the classes{note and "; " + note}')
    others = PhotoList(root, [Photo(path, ()) for path in found if path in good - own])
    return replace(photos, others=others, notes=(*photos.notes, *([f'{folder}: {note}'] if note else [])))


def _read_all(files: Sequence[Path]) -> list[tuple[str, str, tuple[int, ...]]]:
    """The digest of each file, why it cannot be read, or ``''``, and its size in pixels, where it can be."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(with_progress(pool.map(_read, files), 'checking photos', len(files)))


def _read(file: Path) -> tuple[str, str, tuple[int, ...]]:
    digest = ''
    try:
        data = file.read_bytes()
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        _, sides = read_pixels(data, short_edge=1)  # reads all of the file, in a fraction of the time
    except (OSError, ValueError) as error:
        return digest or str(file), one_line(error)[:80], ()
    return digest, '', sides


def _classes(lists: Iterable[PhotoList]) -> tuple[str, ...]:
    return tuple(sorted({label for part in lists for photo in part.photos for label in photo.labels}))
