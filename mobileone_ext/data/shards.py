"""Photos in tar shards of WebDataset's layout, as a data set of places in files: any photo, in any order, by one read.

A shard holds ``KEY.jpg`` and its label ``KEY.cls`` (or ``.json``, ``.txt``), where KEY ends at the first dot of the
file's name; or no labels, and ``CLASS/*.jpg``. It is walked once. ``SHARD.index.json`` beside it then says where its
photos lie, for its size and date.
"""

import contextlib
import json
import os
import posixpath
import re
import tarfile
from collections.abc import Set
from functools import cache, lru_cache
from pathlib import Path
from typing import BinaryIO

from mmengine.fileio import LocalBackend, register_backend
from mmpretrain.datasets import BaseDataset

from ..files import write_text
from ..registry import DATASETS
from ..text import nfc, quoted
from .images import SUFFIXES, is_hidden

LABELS = ('cls', 'json', 'txt')  # what is asked first
_PLACE = re.compile(r'tar://(.+?):(\d+)\+(\d+):.*', re.DOTALL)
_BLOCK = 512  # bytes; one of zeros ends an archive

Photo = tuple[str, int, int, int | str]  # member, offset and size in bytes, label: a number or the name of a class


class TarBackend(LocalBackend):
    """Lets mmengine, and so every transform that loads, read ``tar://SHARD:OFFSET+SIZE:MEMBER``."""

    def get(self, filepath: str) -> bytes:
        shard, offset, size = _PLACE.fullmatch(filepath).groups()
        return os.pread(_opened(shard).fileno(), int(size), int(offset))


@lru_cache(maxsize=256)  # of the 1,024 files that a process may have open
def _opened(shard: str) -> BinaryIO:
    """The file, opened when a process first asks; those that are forked may share it, as ``pread`` moves nothing."""
    return open(shard, 'rb', buffering=0)


@DATASETS.register_module()
class Shards(BaseDataset):
    """The photos of tar shards, in the order of the shards and of their members.

    Labels are numbers, or names of classes if one of them is none; their classes are then those of ``classes`` or
    ``metainfo``, else the names that there are, sorted.

    Args:
        data_prefix: below ``data_root``, a folder of ``*.tar``, or shards as in ``train-{000..146}.tar``.
        split: the same, where a config of mmpretrain's ``ImageNet`` has it.

    Raises:
        OSError, ValueError: naming the shard, and the member, that is not there, not whole, or without a label.
    """

    def __init__(self, data_root: str = '', data_prefix: str = '', split: str = '', **kwargs):
        super().__init__(ann_file='', data_root=data_root, data_prefix=data_prefix or split, **kwargs)

    def load_data_list(self) -> list[dict]:
        listed = photos_at(Path(self.img_prefix))
        found = names_of_labels({label for *_, label in listed})
        names = self.CLASSES or found
        if names:
            self._metainfo['classes'] = tuple(names)
        labels = {nfc(name): label for label, name in enumerate(names or ())}
        samples = []
        for shard, member, offset, size, label in listed:
            if found and str(label) not in labels:
                raise ValueError(f'{shard}: {member} is of {quoted([str(label)])}, none of the classes {quoted(names)}')
            label = labels[str(label)] if found else label
            samples.append(dict(img_path=f'tar://{shard}:{offset}+{size}:{member}', gt_label=label))
        return samples

    def prepare_data(self, idx: int) -> dict:
        register_backend('tar', TarBackend, force=True, prefixes='tar')  # here, as workers begin in several ways
        return super().prepare_data(idx)


def names_of_labels(labels: Set[int | str]) -> list[str] | None:
    """The classes that labels name, sorted; None if all are numbers."""
    return sorted(map(str, labels)) if any(isinstance(label, str) for label in labels) else None


def photos_at(place: Path) -> list[tuple]:
    """Shard, member, offset, size and label of every photo in the shards at ``place``, in their order; errors as
    :class:`Shards`."""
    return [(shard, *photo) for shard in find_shards(place) for photo in photos_in(shard)]


def find_shards(place: Path) -> list[Path]:
    """The shards in a folder, or those that a pattern such as ``train-{000..146}.tar`` stands for.

    Raises:
        FileNotFoundError: if there are none, or not all of them.
    """
    place = place.expanduser()
    if place.is_dir():
        shards = sorted(path for path in place.glob('*.tar') if not is_hidden(path.name))
    else:
        shards = [*map(Path, expanded(str(place)))]
    missing = [path for path in shards if not path.exists()] if shards else [place / '*.tar']
    if missing:
        raise FileNotFoundError(
            f'{missing[0]}: no such shard; data_prefix of the data set names the folder of its shards, or a pattern as '
            'in train-{000..146}.tar'
        )
    return shards


def expanded(pattern: str) -> list[str]:
    """``a-{08..10}.tar`` as a shell has it: ``a-08.tar``, ``a-09.tar``, ``a-10.tar``."""
    match = re.search(r'\{(\d+)\.\.(\d+)\}', pattern)
    if not match:
        return [pattern]
    first, last = match.groups()
    numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    ends = expanded(pattern[match.end() :])
    return [f'{pattern[: match.start()]}{number}{end}' for number in numbers for end in ends]


def photos_in(shard: Path) -> list[Photo]:
    """The photos of a shard, from its index if that is of the same size and date; else from its headers."""
    status, index = shard.stat(), shard.with_name(f'{shard.name}.index.json')
    of = [status.st_size, status.st_mtime_ns]
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads(index.read_text(encoding='utf-8'))
        if kept['of'] == of:
            return kept['photos']
    photos = _walk(shard, *of)
    with contextlib.suppress(OSError):  # where nothing may be written, every process walks it
        write_text(json.dumps(dict(of=of, photos=photos)), index)
    return photos


@cache
def _walk(shard: Path, size: int, date: int) -> list[Photo]:
    """The photos of a shard of this size and date; raises ValueError, naming the shard and the member."""
    photos: dict[str, tuple] = {}
    labels: dict[str, dict] = {}
    name = 'its start'
    with open(shard, 'rb') as file:
        try:
            with tarfile.open(fileobj=file, mode='r:') as tar:
                for member in tar:
                    name = member.name.removeprefix('./')
                    folder, base = posixpath.split(name)
                    stem, _, suffix = base.partition('.')
                    key, suffix = posixpath.join(folder, stem), suffix.lower()
                    if is_hidden(base) or member.isdir() or not (suffix in LABELS or f'.{suffix}' in SUFFIXES):
                        continue
                    if not member.isreg():
                        raise ValueError(
                            f'{shard}: {name} is a link (tar --dereference --hard-dereference stores files)'
                        )
                    if suffix in LABELS:
                        data = os.pread(file.fileno(), member.size, member.offset_data)
                        labels.setdefault(key, {})[suffix] = name, data
                    else:
                        photos[name] = key, member.offset_data, member.size
                whole = os.pread(file.fileno(), _BLOCK, tar.offset) == bytes(_BLOCK)
        except tarfile.TarError as error:
            raise ValueError(f'{shard}: not a whole, uncompressed tar archive, at {name}: {error}') from None
    if not whole:  # tarfile takes it for the end
        raise ValueError(f'{shard}: not a whole tar archive: it is cut off or damaged after {name}')
    if not photos:
        raise ValueError(f'{shard}: no photos among its members')
    return [
        (name, offset, size, _label(shard, name, labels.get(key, {}) if labels else None))
        for name, (key, offset, size) in photos.items()
    ]


def _label(shard: Path, photo: str, files: dict[str, tuple[str, bytes]] | None) -> int | str:
    """What the first of its ``files`` says; where a shard has none at all, the photo's folder."""
    if files is None and '/' in photo:
        return nfc(photo.partition('/')[0])
    for suffix in filter(files.__contains__, LABELS) if files else ():
        name, data = files[suffix]
        try:
            value = json.loads(data) if suffix == 'json' else data.decode()
        except ValueError as error:
            raise ValueError(f'{shard}: {name}: no label can be read ({error})') from None
        value = value.get('label') if isinstance(value, dict) else value
        text = '' if value is None else nfc(str(value).strip())
        if text:
            return int(text) if re.fullmatch(r'-?\d+', text, re.ASCII) else text
    raise ValueError(f'{shard}: {photo} has no label; {photo.rpartition(".")[0]}.cls with a number or a name is needed')
