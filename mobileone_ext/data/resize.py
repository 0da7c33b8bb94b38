"""A data set's photos resized once to a short edge, so that each epoch reads and decodes fewer pixels.

What is written has the folders, names and annotation files of what is read. Photos that are small
already are hard links to their originals. A list in the folder says what each file was made of, so that a run
that was killed goes on where it stopped, and another one makes anew what has changed and knows what is gone.
"""

import contextlib
import io
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..files import json_text, suffix_of, write_atomically, write_text
from ..text import abbreviate, one_line, printable, with_progress
from .decode import read_pixels
from .images import SUFFIXES, Listing, class_folders, images_below, is_hidden

QUALITY = 90  # in full color, smaller and closer to the original than 95 with colors at half the pixels
MARK = '.resized.json'  # in the folder that is written: how, and from where
FILES = '.resized.files'  # beside it: a line for each file and folder written, as JSON, name and stamp
_ANNOTATIONS = ('.csv', '.json', '.jsonl', '.mat', '.names', '.npy', '.pkl', '.tsv', '.txt', '.yaml', '.yml')
_EVALUATED = 256  # pixels: the short edge to which photos are resized for evaluation, before the center crop
# Formats by the suffix, which annotation files name; photos of others stay as they are.
_FORMATS = {
    **dict.fromkeys(('.jfif', '.jpe', '.jpeg', '.jpg'), 'JPEG'),
    **dict.fromkeys(('.tif', '.tiff'), 'TIFF'),
    '.bmp': 'BMP',
    '.png': 'PNG',
    '.webp': 'WEBP',
}
_QUEUED = 16  # photos that wait for each process


class Outcome(NamedTuple):
    """What became of a file: ``kind`` of ``KINDS``, bytes before and after, why it was skipped, stamp of the source."""

    kind: str
    before: int = 0
    after: int = 0
    reason: str = ''
    stamp: str = ''


class Report(NamedTuple):
    """What became of a data set.

    Attributes:
        counts: files by kind.
        before, after: bytes of the photos written.
        unreadable: a line a photo.
        left_out: what else was there.
        gone: files and folders (with ``/``) written earlier, of which the source has nothing readable any more.
        pruned: whether ``gone`` was removed.
    """

    counts: Counter
    before: int
    after: int
    unreadable: list[str]
    left_out: str
    gone: list[str]
    pruned: bool


KINDS = {
    'resized': 'resized',
    'small': 'small already, linked as they are',
    'other format': 'of formats that are not rewritten, linked as they are',
    'done': 'done by an earlier run',
    'unreadable': 'not readable, left out',
    'annotations': 'annotation files copied',
}


def resize_dataset(
    source: str | Path,
    target: str | Path,
    short_edge: int,
    quality: int = QUALITY,
    processes: int = 1,
    prune: bool = False,
) -> Report:
    """Write the photos and annotation files below ``source`` to ``target``.

    Args:
        short_edge: of the photos written, in pixels.
        quality: of JPEG and WebP, 1 .. 100.
        processes: that work at a time.
        prune: remove what an earlier run wrote and ``source`` does not have any more.

    Raises:
        ValueError, OSError: before anything is written for folders that do not fit; later if ``target`` takes no more.
    """
    source, target = Path(source), Path(target)
    settings = dict(source=os.path.realpath(source), short_edge=short_edge, quality=quality)
    check_folders(source, target, settings)
    photos, annotations = find(source, target)

    target.mkdir(parents=True, exist_ok=True)
    write_text(json_text(settings), target / MARK)
    written = _Written(target)
    kept = _folders(source, [*photos, *annotations])
    for folder in sorted(kept):
        (target / folder).mkdir(exist_ok=True)
        written.note(folder, '')
    for name in annotations:
        stamp = _stamp(source / name)
        if not written.has(name, stamp):
            with write_atomically(target / name) as part:
                shutil.copyfile(source / name, part)
            written.note(name, stamp)
    kept.update(annotations)
    counts, before, after, unreadable = Counter(annotations=len(annotations)), 0, 0, []
    outcomes = _outcomes(_Work(source, written, photos, short_edge, quality), processes)
    bar = with_progress(outcomes, 'photos', len(photos))
    for name, outcome in zip(photos, bar):
        counts[outcome.kind] += 1
        before, after = before + outcome.before, after + outcome.after
        if outcome.kind == 'unreadable':
            unreadable.append(printable(f'{name}: {outcome.reason}'))
        else:
            written.note(name, outcome.stamp)
            kept.add(name)
    if len(unreadable) == len(photos):
        raise ValueError(f'{source}: none of its {len(photos)} photos is readable; the first is {unreadable[0]}')
    gone = [name for name in sorted(written.stamps) if name not in kept and written.has(name)]
    if prune:
        gone = written.remove(gone)
    return Report(counts, before, after, unreadable, photos.note, gone, prune)


def show(report: Report) -> None:
    """Print what became of the files."""
    for line in report.unreadable:
        print(f'skipped {line}')
    for kind, text in KINDS.items():
        if report.counts[kind]:
            print(f'{report.counts[kind]:,} {text}')
    if report.before:
        print(f'{report.before / 1e6:,.1f} MB of photos are {report.after / 1e6:,.1f} MB')
    if report.left_out:
        print(report.left_out)
    if report.gone:
        removed = 'removed, as the source has them no more' if report.pruned else 'not in the source any more'
        remedy = '' if report.pruned else '; --prune removes them'
        print(f'{len(report.gone):,} files and folders {removed}: {abbreviate(map(printable, report.gone))}{remedy}')


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def check_folders(source: Path, target: Path, settings: dict) -> None:
    """Raise ValueError or OSError unless ``target`` is new, empty, or by a run of the same ``settings``."""
    inner, outer = Path(os.path.realpath(target)), Path(settings['source'])
    if inner == outer or outer in inner.parents:
        raise ValueError(f'{target}: lies in what is read ({source}); name a folder outside of it')
    mark = target / MARK
    earlier = mark.read_text(encoding='utf-8') if mark.is_file() else None
    if earlier not in (None, json_text(settings)):
        raise ValueError(
            f'{target}: was written with {one_line(earlier)}, not {one_line(json_text(settings))}; name another folder'
        )
    if earlier is None and target.exists() and any(not is_hidden(name) for name in os.listdir(target)):
        raise ValueError(f'{target}: is not empty, and no run of this tool wrote it; name a new folder')


def find(source: Path, target: Path) -> tuple[Listing, list[str]]:
    """Photos (with what is left out) and annotation files below ``source``, as paths relative to it.

    Raises:
        ValueError: for a folder without photos, or with a link to ``target``.
    """
    files = images_below(source, (*SUFFIXES, *_ANNOTATIONS))
    annotations = [name for name in files if suffix_of(name) in _ANNOTATIONS]
    photos = Listing((name for name in files if suffix_of(name) not in _ANNOTATIONS), files.left_out)
    if not photos:
        raise ValueError(f'{source}: no photos in this folder ({photos.note or "it is empty"})')
    written = Path(os.path.realpath(target))
    for folder in sorted({os.path.dirname(name) for name in files}):
        if Path(os.path.realpath(source / folder)).is_relative_to(written):
            raise ValueError(f'{source / folder}: leads to what is written ({target}); remove this link')
    return photos, annotations


def _folders(source: Path, names: list[str]) -> set[str]:
    """Folders to make, with ``/``: those of the files, and class folders without any, for labels follow their order."""
    folders = {os.path.dirname(name) for name in names}
    for split in ('', *class_folders(source)):
        folders |= {os.path.join(split, name) for name in class_folders(source / split)}
    above = {parent for folder in folders for parent in Path(folder, 'x').parents}
    return {f'{folder.as_posix()}/' for folder in above if folder.name}


class _Written:
    """The list of what runs of this tool have written to ``target``, by lines, which outlive a kill.

    ``stamps`` has, by name, what :func:`_stamp` said of the file that it was made of, ``''`` for a folder, whose name
    ends in ``/``, and None for what was removed.
    """

    def __init__(self, target: Path):
        self.target, self.stamps = target, {}
        path = target / FILES
        for line in path.read_text(encoding='ascii', errors='replace').splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError, TypeError):  # the last line of a killed run
                name, stamp = json.loads(line)
                self.stamps[name] = stamp

    def has(self, name: str, stamp: str | None = None) -> bool:
        """Whether the file is there and of this tool, and made of one of this ``stamp``, if that is asked for."""
        made_of = self.stamps.get(name)
        return made_of is not None and stamp in (None, made_of) and (self.target / name).exists()

    def note(self, name: str, stamp: str | None) -> None:
        if self.stamps.get(name) != stamp:
            self.stamps[name] = stamp
            with open(self.target / FILES, 'a', encoding='ascii') as file:
                file.write(f'\n{json.dumps([name, stamp])}')

    def remove(self, names: list[str]) -> list[str]:
        """Remove files, and the folders in which nothing of others is left; those of ``names`` that are gone."""
        removed = []
        for name in sorted(names, reverse=True):  # what is in a folder before the folder
            with contextlib.suppress(OSError):
                path = self.target / name
                path.rmdir() if name.endswith('/') else path.unlink()
                self.note(name, None)
                removed.append(name)
        return sorted(removed)


def _stamp(path: Path) -> str:
    """Size and date, by which a file is the same as before."""
    status = path.stat()
    return f'{status.st_size} {status.st_mtime_ns}'


def _outcomes(work: '_Work', processes: int) -> Iterator[Outcome]:
    """In the order of the photos, by a loader, whose workers end with this process however it does."""
    workers = dict(num_workers=processes, prefetch_factor=_QUEUED) if processes > 1 else {}
    try:
        yield from DataLoader(work, batch_size=None, collate_fn=_unchanged, **workers)
    except KeyboardInterrupt:
        raise KeyboardInterrupt('what is written is whole, and the same command goes on') from None
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        raise OSError(
            'a process was killed, perhaps for want of memory (--processes N takes fewer); the same command goes on'
        ) from error


def _unchanged(outcome: Outcome) -> Outcome:
    return outcome


class _Work(Dataset):
    """Item i resizes photo i and is its :class:`Outcome`."""

    def __init__(self, source: Path, written: _Written, photos: Listing, short_edge: int, quality: int):
        self.source, self.written, self.photos = source, written, list(photos)
        self.short_edge, self.quality = short_edge, quality

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Outcome:
        name = self.photos[index]
        try:
            stamp = _stamp(self.source / name)  # before it is read: what changes later is seen the next time
        except OSError as error:
            return Outcome('unreadable', reason=error.strerror)
        if self.written.has(name, stamp):
            return Outcome('done', stamp=stamp)
        outcome = resize_file(self.source / name, self.written.target / name, self.short_edge, self.quality)
        return outcome._replace(stamp=stamp)


def resize_file(source: Path, target: Path, short_edge: int, quality: int) -> Outcome:
    """Write the photo ``source`` to ``target``, whole or not at all.

    Raises:
        OSError: if ``target`` cannot be written; what is wrong with ``source`` is the outcome's reason.
    """
    try:
        data = source.read_bytes()
        pixels, size = read_pixels(data, short_edge)
    except (OSError, ValueError) as error:
        return Outcome('unreadable', reason=getattr(error, 'strerror', None) or str(error))
    file_format = _FORMATS.get(suffix_of(source))
    if min(size) <= short_edge or not file_format:
        _link(source, target)
        return Outcome('other format' if min(size) > short_edge else 'small', len(data), len(data))
    encoded = encode(pixels, fitted(size, short_edge), file_format, quality)
    with write_atomically(target) as part:
        part.write_bytes(encoded)
    return Outcome('resized', len(data), len(encoded))


def fitted(size: tuple[int, int], short_edge: int) -> tuple[int, int]:
    """``size`` (H, W) with its short edge resized to ``short_edge``, the ratio kept to a pixel.

    The long edge is rounded so that resizing to 256 px for evaluation gives as many pixels as from the original:
    one more or less would shift the center crop by half a pixel.
    """
    short, long = min(size), max(size)
    candidates = [round(long * short_edge / short), long * short_edge // short, math.ceil(long * short_edge / short)]
    wanted = long * _EVALUATED // short
    agreeing = [length for length in candidates if length * _EVALUATED // short_edge == wanted]
    length = (agreeing or candidates)[0]
    return (short_edge, length) if size[0] == short else (length, short_edge)


def encode(pixels: np.ndarray, size: tuple[int, int], file_format: str, quality: int) -> bytes:
    """BGR ``pixels`` (H, W, 3) resized to ``size`` (h, w), as a file; gray ones with a single channel."""
    gray = (pixels == pixels[..., :1]).all()
    image = Image.fromarray(pixels[..., 0] if gray else np.ascontiguousarray(pixels[..., ::-1]))
    buffer = io.BytesIO()
    image.resize(size[::-1], Image.Resampling.LANCZOS).save(buffer, file_format, quality=quality, subsampling=0)
    return buffer.getvalue()


def _link(source: Path, target: Path) -> None:
    """A hard link; a copy where the file system or the owner of the file allows none."""
    with write_atomically(target) as part:
        try:
            os.link(os.path.realpath(source), part)
        except OSError:
            shutil.copyfile(source, part)
