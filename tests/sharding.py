"""Writes class folders as tar shards of WebDataset's layout, in the order in which folders are read."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

AS_TEXT = {'cls': str, 'txt': '{}\n'.format, 'json': lambda label: json.dumps(dict(width=8, label=label))}


def write_shard(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w', format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_shards(folder: Path, out: Path, shards: int = 3, kind: str = 'cls') -> None:
    """The photos of class folders; each shard has its share, a photo's label before it."""
    photos = sorted(folder.glob('*/*.png'))
    share = -(-len(photos) // shards)
    for number in range(shards):
        members = []
        for photo in photos[number * share : (number + 1) * share]:
            key = f'{photo.parent.name}/{photo.stem}'
            members.append((f'{key}.{kind}', AS_TEXT[kind](photo.parent.name).encode()))
            members.append((f'{key}.png', photo.read_bytes()))
        write_shard(out / f'{out.name}-{number:03}.tar', members)
