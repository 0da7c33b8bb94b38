"""Classes, or the parts of a split? Told by what the folders hold; names alone say which part trains.

Parts hold folders of the same names, the classes, whatever they are called themselves; classes hold photos.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from ..text import nfc, quoted

ROLES = {
    'train': ('train', 'training'),
    'val': ('val', 'valid', 'validation', 'dev', 'eval'),
    'test': ('test', 'testing'),
}


def find_parts(root: Path, inside: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Which folders of ``root`` are ``train``, ``val`` and ``test``; nothing where its folders are classes.

    Those named as in ``ROLES``. Among folders that hold the same ones, where each has such a word in its name, also by
    that; and a single one that is left takes the place that is free.

    Args:
        inside: the photos below each folder of ``root``, as paths relative to that.

    Raises:
        ValueError: naming the folders, if it is not clear which of them trains, or whether they are classes.
    """
    contents = {name: branches(files) for name, files in inside.items() if files}
    held = {name: folders for name, (_, folders) in contents.items()}
    same = alike(held)
    roles = {name: _role(name) for name in held}
    words, given = {name: _role_of_word(name) for name in same}, set(roles.values())
    if all(words.values()):
        roles |= {name: word for name, word in words.items() if word not in given}
    parts = [name for name in held if held[name] and roles[name]]
    by_role = {roles[name]: name for name in parts}
    rest = [name for name in same if not roles[name]]
    if len(rest) == 1 and by_role and 'train' not in by_role:
        by_role['train'] = rest[0]
    elif len(rest) == 1 and [*by_role] == ['train']:
        by_role['val'] = rest[0]
    if len(by_role) < len(parts) or (same and ('train' not in by_role or len(by_role) < 2)):
        raise ValueError(_unclear(root, inside, held, same or parts))
    train = by_role.get('train')
    others = [name for name in held if name not in by_role.values()]
    if train is None:
        if 'train' in roles.values() and len(roles) > 1 and all(roles.values()):
            raise ValueError(
                f'{root}: {quoted(roles)} hold photos and no class folders; expected is {root}/train/CLASS/*.jpg'
            )
        return {}
    if len(by_role) == 1 and not all(roles[name] for name in others):
        raise ValueError(
            f'{root}: {quoted([train])} holds folders, {quoted(others, 3)} not the same ones; name {root / train} if '
            f'these are the classes, or move all classes into {root}/train'
        )
    return {role: root / name / contents[name][0] for role, name in by_role.items()}


def check_are_classes(folder: Path, inside: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError if the folders in ``folder`` look like the parts of a split; arguments as :func:`find_parts`."""
    same = alike({name: branches(files)[1] for name, files in inside.items() if files})
    if same:
        raise ValueError(
            f'{folder}: {quoted(same)} hold folders of the same names, as the parts of a split do; data_prefix=DIR of '
            'the data set names the one to take, and metainfo.classes=[A,B,...] without --classes-from-data the classes'
        )


def branches(files: Sequence[str]) -> tuple[str, set[str]]:
    """Where photos part into folders, and the names of these: ``('b', {'x', 'y'})`` of ``b/x/1.jpg, b/y/2.jpg``.

    No names where most photos lie in none of these folders.
    """
    folders = Counter(map(posixpath.dirname, files))
    top = posixpath.commonpath(folders)
    if top and len(folders) == 1:
        top, name = posixpath.split(top)
        return top, {nfc(name)}
    loose = folders.pop(top, 0)
    names = {nfc(folder[len(top) :].lstrip('/').split('/')[0]) for folder in folders}
    return top, names if 2 * loose <= len(files) else set()


def alike(held: Mapping[str, Collection[str]]) -> list[str]:
    """The folders that hold mostly the same ones, if these are at least half of all folders, and two names or more.

    Args:
        held: the names of the folders in each folder.
    """
    counts = Counter(name for names in held.values() for name in names)
    shared = {name for name, count in counts.items() if count > 1}
    most = max(held.values(), key=lambda names: (len(shared.intersection(names)), len(names)), default=())
    same = [folder for folder, names in held.items() if names and 2 * len({*names} & {*most}) >= len(names)]
    names = _all(held[folder] for folder in same)
    return same if len(same) > 1 and len(names) > 1 and 2 * len(same) >= len(held) else []


def _all(sets: Iterable[Collection[str]]) -> list[str]:
    return sorted(set().union(*sets))


def _role(name: str) -> str | None:
    return next((role for role, names in ROLES.items() if name.casefold() in names), None)


def _role_of_word(name: str) -> str | None:
    """The role of the first word in ``name`` that has one: ``cars_train``, ``TestSet``."""
    words = re.findall(r'[A-Z]?[a-z]+|[A-Z]+', name)
    return next(filter(None, (_role(word.casefold().removesuffix('set')) for word in words)), None)


def _unclear(root: Path, inside: Mapping[str, Sequence[str]], held: Mapping[str, set[str]], folders: list[str]) -> str:
    names = _all(held[folder] for folder in folders)
    if all(map(_role, names)):
        return (
            f'{root}: {quoted(folders, 3)} hold {quoted(names)} each, a split within the classes; expected is one '
            f'around them, as in {root}/{names[-1]}/{folders[0]}'
        )
    first, second = sorted(folders, key=lambda folder: (_role(folder) != 'train', -len(inside[folder])))[:2]
    return (
        f'{root}: {quoted(folders)} hold folders of the same names ({quoted(names, 3)}), as parts of a split do, and '
        f'which one trains and which one measures is not clear; name both, as in {root / first} --val {root / second}; '
        f'if they are classes, move them into {root}/train'
    )
