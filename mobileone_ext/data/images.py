"""The one finder of photos: what all tools take from a folder, and what they leave out and say."""

import importlib.util
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from PIL import features

from ..files import near
from ..text import abbreviate, nfc, printable

T = TypeVar('T')

_LOOSE = 'photos in no class folder'
_KINDS = 8  # of what is left out are named

# What Pillow reads of what photos come in.
_ALWAYS = '.bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp'
_HEIF = ('.heic', '.heif', '.hif')
_HEIF_READER = 'pillow_heif'
SUFFIXES: tuple[str, ...] = (
    *_ALWAYS.split(),
    *(('.avif',) if features.check('avif') else ()),
    *(_HEIF if importlib.util.find_spec(_HEIF_READER) else ()),
)

# What file managers, archives, network drives and notebooks leave among photos; all that begins with a dot as well.
_HIDDEN = {
    '__MACOSX', '@eaDir', '#recycle', '$RECYCLE.BIN', 'System Volume Information', 'lost+found',
    'Thumbs.db', 'desktop.ini',
}  # fmt: skip


class Listing(list):
    """Files of photos as paths, or names of folders, sorted; ``left_out`` counts by kind what else was there."""

    def __init__(self, items: Iterable = (), left_out: Counter | None = None):
        super().__init__(items)
        self.left_out = Counter(left_out or {})

    @property
    def note(self) -> str:
        """``left out: 2 .txt, 1 hidden``, empty if nothing was."""
        return left_out_note(self.left_out)


def left_out_note(left_out: Counter) -> str:
    """``left out: 2 .txt, 1 hidden``, empty if nothing was."""
    counts = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    return f'left out: {abbreviate((f"{count} {kind}" for kind, count in counts), _KINDS)}' if counts else ''


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is nobody's photo and nobody's class."""
    return name.startswith('.') or name in _HIDDEN


def class_folders(root: str | Path, suffixes: Sequence[str] = SUFFIXES) -> Listing:
    """Names of the folders in ``root``, sorted, a class each; photos beside them and hidden folders are left out.

    Raises:
        OSError: if there is no such folder.
    """
    suffixes = tuple(suffix.lower() for suffix in suffixes)
    with os.scandir(root) as entries:
        kinds = {entry.name: _kind(entry, suffixes) for entry in entries}
    folders = [name for name, kind in kinds.items() if kind == 'folder']
    left_out = Counter(_LOOSE if kind == 'photo' else kind for kind in kinds.values() if kind != 'folder')
    return Listing(sorted(folders, key=lambda name: (nfc(name), name)), left_out)


def names_of_folders(folders: Iterable[str]) -> list[str]:
    """The classes that ``folders`` stand for, each once: letters in composed form (NFC), whatever the disk has."""
    return list(dict.fromkeys(map(nfc, folders)))


def photos_by_folder(root: str | Path, suffixes: Sequence[str] = SUFFIXES) -> tuple[dict[str, Listing], Counter]:
    """The photos below each of the :func:`class_folders`, as paths relative to that, and what is left out in all."""
    folders = class_folders(root, suffixes)
    inside = {name: images_below(os.path.join(root, name), suffixes) for name in folders}
    return inside, sum((listing.left_out for listing in inside.values()), folders.left_out)


def images_below(folder: str | Path, suffixes: Sequence[str] = SUFFIXES) -> Listing:
    """The photos at any depth below ``folder``, as paths relative to it, by their names' ends in any case.

    Links are followed, and a folder is entered once, so that a circle of links ends.

    Raises:
        OSError: if ``folder`` cannot be read; a folder in it that cannot is counted.
    """
    suffixes = tuple(suffix.lower() for suffix in suffixes)
    photos, left_out = [], Counter()
    with os.scandir(folder) as entries:
        waiting = [('', list(entries))]
    # A link upwards would bring in what is not below: other classes.
    seen = {_identity(os.stat(above)) for above in (folder, *Path(folder).resolve().parents)}
    while waiting:
        prefix, entries = waiting.pop()
        for entry in sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name)):
            kind = _kind(entry, suffixes)
            if kind == 'photo':
                photos.append(prefix + entry.name)
            elif kind != 'folder':
                left_out[kind] += 1
            elif (identity := _identity(entry.stat())) not in seen:
                seen.add(identity)
                try:
                    with os.scandir(entry.path) as inner:
                        waiting.append((f'{prefix}{entry.name}/', list(inner)))
                except OSError:
                    left_out['folders that cannot be read'] += 1
    return Listing(sorted(photos), left_out)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _kind(entry: os.DirEntry, suffixes: tuple[str, ...]) -> str:
    """``'photo'``, ``'folder'`` or, for what is left out, why."""
    hidden = is_hidden(entry.name)
    try:
        if entry.is_dir():
            return f"hidden '{printable(entry.name)}'" if hidden else 'folder'
        if hidden:
            return 'hidden'
        if entry.is_file():
            return 'photo' if entry.name.lower().endswith(suffixes) else _suffix(entry.name)
    except OSError:  # links that go in a circle
        return 'broken links'
    return 'broken links' if entry.is_symlink() and not os.path.exists(entry.path) else 'pipes, sockets or devices'


def _suffix(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    if suffix in _HEIF:
        return f'{suffix} (pip install pillow-heif reads them)'
    return ascii(suffix)[1:-1] if suffix else 'without a suffix'


def find_images(paths: str | Path | Iterable[str | Path], missing: list[str] | None = None) -> Listing:
    """The photos among ``paths`` and below those that are folders; a file that is named itself is taken as it is.

    Args:
        missing: gets a message about each path without photos, if there are others; None raises.

    Raises:
        OSError: for a path that is not there.
        ValueError: for a folder without photos, or no photos at all.
    """
    photos, named = Listing(), [paths] if isinstance(paths, str | Path) else list(paths)
    for path in map(Path, named):
        if path.is_dir() and (inside := images_below(path)):
            photos.extend(path / name for name in inside)
            photos.left_out += inside.left_out
        elif path.is_file():
            photos.append(path)
        elif path.exists() and not path.is_dir():
            photos.left_out['pipes, sockets or devices'] += 1
        else:
            error: Exception = FileNotFoundError(f'{path}: no such file or folder{near(path)}')
            if path.is_dir():
                error = ValueError(f'{path}: no images in this folder ({inside.note or "it is empty"})')
            if missing is None:
                raise error
            missing.append(str(error))
    if missing and not photos:
        raise ValueError('; '.join(missing))
    return photos


def spread(items: Sequence[T], count: int) -> list[T]:
    """``count`` of ``items``, spread evenly from the first to the last; all of them if there are no more."""
    if count >= len(items):
        return list(items)
    return [items[index * (len(items) - 1) // max(count - 1, 1)] for index in range(count)]


@cache
def register_readers() -> None:
    """Let Pillow read what the optional packages read."""
    if _HEIF[0] in SUFFIXES:
        importlib.import_module(_HEIF_READER).register_heif_opener()
