"""Published weights by name, and a local file for whatever names a checkpoint.

Apple's files come from github.com/apple/ml-mobileone, mmpretrain's from its metafile
of MobileOne, timm's from its model cards: Apple's weights again, under timm's names.
"""

import difflib
import os
import re
from hashlib import sha256
from pathlib import Path, PurePath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from ..files import near
from ..text import code, markdown_table
from .download import cache_folder, fetch, fetch_from_hub

_APPLE = 'https://docs-assets.developer.apple.com/ml-research/datasets/mobileone/'
_MMPRETRAIN = 'https://download.openmmlab.com/mmclassification/v0/mobileone/'
_HUB = 'https://huggingface.co/'
_HUB_FILE = 'model.safetensors'


class License(NamedTuple):
    """What may be done with weights: ``text`` for a reader, ``tags`` for the head of a card on Hugging Face's hub."""

    text: str
    tags: str = ''


LICENSES = {
    "Apple's own": License(
        "Apple's own license (LICENSE of ml-mobileone at b7f4e6d) grants use, reproduction, modification and "
        'redistribution, and no patent rights; read it before you ship',
        'license: other\nlicense_name: mobileone-license\n'
        'license_link: https://github.com/apple/ml-mobileone/blob/b7f4e6d/LICENSE\n',
    ),
    'Apache-2.0': License(
        'Apache-2.0 grants use, modification and redistribution with its notice, and patent rights',
        'license: apache-2.0\n',
    ),
}


class Published(NamedTuple):
    """Weights that somebody offers.

    Attributes:
        url: of the file.
        file: its name in the cache.
        form: ``'branched'`` or ``'fused'``.
        top1: on ImageNet, percent, at 224 px of 256; Apple's as re-evaluated by others, mmpretrain's its own figure.
        license: of the weights, a key of :data:`LICENSES`.
        sha256: first digits, where the publisher tells them.
        repo: of Hugging Face's hub, which has its own cache.
    """

    url: str
    file: str
    form: str
    top1: float
    license: str
    sha256: str = ''
    repo: str = ''


def _published() -> dict[str, Published]:
    apple = dict(s0=71.36, s1=75.76, s2=77.39, s3=77.93, s4=79.30)
    table = {}
    for variant, top1 in apple.items():
        for form, name, ending in (('branched', '', '_unfused'), ('fused', '-fused', '')):
            file = f'mobileone_{variant}{ending}.pth.tar'
            table[f'apple/mobileone_{variant}{name}'] = Published(_APPLE + file, file, form, top1, "Apple's own")
    for variant, top1, digits in (
        ('s0', 71.34, '0bc94952'),
        ('s1', 75.72, 'ceeef467'),
        ('s2', 77.37, '9c7ecb97'),
        ('s3', 78.06, 'c95eb3bf'),
        ('s4', 79.69, '28d888cb'),
    ):
        file = f'mobileone-{variant}_8xb32_in1k_20221110-{digits}.pth'
        entry = Published(_MMPRETRAIN + file, file, 'branched', top1, 'Apache-2.0', digits)
        table[f'mmpretrain/mobileone-{variant}_8xb32_in1k'] = entry
    for variant, top1 in apple.items():
        repo = f'timm/mobileone_{variant}.apple_in1k'
        url, file = f'{_HUB}{repo}/resolve/main/{_HUB_FILE}', f'timm_mobileone_{variant}.apple_in1k.safetensors'
        table[repo] = Published(url, file, 'branched', top1, "Apple's own", repo=repo)
    return table


PUBLISHED = _published()


def table() -> str:
    """``PUBLISHED`` in Markdown."""
    rows = []
    for name, entry in PUBLISHED.items():
        digits = code(f'{entry.sha256}...') if entry.sha256 else "the hub's" if entry.repo else 'not published'
        file = code(_HUB_FILE if entry.repo else entry.file)
        rows.append((code(name), entry.form, f'{entry.top1:.2f}', entry.license, digits, file))
    return markdown_table(('name', 'form', 'top-1', 'license of the weights', 'sha256', 'file'), rows)


def licenses() -> str:
    """What the licenses of ``PUBLISHED`` say."""
    terms = [f'{license.text}.' for license in LICENSES.values()]
    return '\n'.join([*terms, "timm's Apache-2.0 is that of its code; its weights of MobileOne are Apple's."])


def license_of(source: str) -> License:
    """Of the weights that ``source`` names, and of what is trained from them."""
    entry = PUBLISHED.get(source)
    return LICENSES[entry.license] if entry else License(f'the weights keep the license of {PurePath(source).name}')


def resolve(source: str | PurePath) -> Path:
    """The local file that ``source`` names: a path, a name of ``PUBLISHED``, or an address.

    A file that is there comes first. Names and addresses are downloaded once, into torch's hub cache (timm's
    into that of huggingface_hub where it is installed). The hash is checked where the publisher gives one,
    or the address does: ``https://.../file.pth#sha256=...``.

    Raises:
        OSError: if there is no such file, or it could not be downloaded; the message names the file to put where.
        ValueError: if a downloaded file is not the published one.
    """
    if os.path.isfile(source):
        return Path(source)
    name = source.as_posix() if isinstance(source, PurePath) else str(source)
    entry = PUBLISHED.get(name)
    if entry is not None:
        path = cache_folder() / entry.file
        if entry.repo and not path.is_file():
            cached = fetch_from_hub(name, entry.repo, _HUB_FILE, path, entry.url)
            if cached is not None:
                return cached
        return fetch(name, entry.url, path, entry.sha256)
    if name.startswith(('http://', 'https://')):
        return _fetch_address(name)
    if os.path.isdir(source):
        raise IsADirectoryError(f'{source}: is a folder; name the checkpoint in it')
    raise FileNotFoundError(f'{source}: no such run or file{_hint(name)}')


def _fetch_address(address: str) -> Path:
    published = next((name for name, entry in PUBLISHED.items() if entry.url == address), None)
    if published:
        return resolve(published)
    url, _, fragment = address.partition('#')
    digits = re.fullmatch(r'sha256=([0-9a-fA-F]{8,64})', fragment)
    if fragment and not digits:
        raise ValueError(f'{address}: after # only sha256=DIGITS is known, the first 8 or more of them')
    # Two addresses may end in the same name: that of the cached file begins with a digest of the whole address.
    last = re.sub(r'[^\w.-]', '_', unquote(PurePath(urlsplit(url).path).name))[-100:]
    file = f'{sha256(url.encode()).hexdigest()[:8]}_{last}'
    return fetch(url, url, cache_folder() / file, digits[1].lower() if digits else '')


def _hint(name: str) -> str:
    if '://' in name:
        return '; addresses begin with http:// or https://; download it first'
    known = {key.lower(): key for key in PUBLISHED}
    close = difflib.get_close_matches(name.lower(), known, 1, 0.8)
    if close:
        return f', and no published weights have that name; did you mean {known[close[0]]}?'
    if name.startswith(('apple/', 'mmpretrain/', 'timm/')):
        return '; tools/convert_checkpoint.py --list shows the published weights that have names'
    return near(name)
