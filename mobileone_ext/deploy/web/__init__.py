"""A page that classifies photos in a browser: a folder for any static host, or one HTML file for a double click.

What the page is stands in the other files here: ``index.html`` (a template), ``page.css``, ``pixels.js`` (photos
resized as Pillow does it), ``page.js`` and ``offline.js``; beside them go the network as ONNX and the runtime of
:mod:`.runtime`. It connects to nothing but its own host: the browser refuses the rest by the page's policy.
"""

import gzip
import json
import shutil
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from string import Template
from typing import Any

from ... import files
from ...data.classes import labels
from ...data.decode import GROUND
from ...files import suffix_of
from ...metadata import PAD, Metadata
from ..runtime import is_exported, open_network
from . import runtime

__all__ = ['is_exported', 'page', 'page_of']
_HERE = Path(__file__).parent
_SCRIPTS = ('pixels.js', 'page.js')
_NETWORK, _PAGE = 'network.onnx', 'index.html'
_OWN = ('page.css', *_SCRIPTS, 'offline.js')
_INTERPOLATIONS = ('bilinear', 'bicubic')  # of pixels.js
# Whatever stood in a class's name: no script and no connection but the page's own.
_POLICY = (
    "default-src 'none'; script-src {script} blob: 'wasm-unsafe-eval'; style-src {style}; connect-src {connect}; "
    "worker-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
)


@contextmanager
def page(out: str | Path, single_file: bool, *sources: str | Path) -> Iterator[Path]:
    """Yield where to write the network as ONNX; afterwards ``out`` is its page.

    Args:
        single_file: one HTML file, ``out`` or in the folder ``out``, instead of a folder.
        sources: what is read, which nothing may replace.

    Raises:
        ValueError, OSError: before anything is written, for an ``out`` that holds or replaces something else, or
            without the runtime; afterwards for a file that does not say which images it takes, or whose way of
            resizing the page does not know.
    """
    out = Path(out)
    is_file = out.suffix.lower() == '.html'
    if (is_file and not single_file) or (out.is_file() and not is_file):
        raise ValueError(f'{out}: a page is a folder; --single-file makes one HTML file, *.html')
    if out.is_dir() and {entry.name for entry in out.iterdir()} - {_PAGE, _NETWORK, *_OWN, *runtime.FILES}:
        raise ValueError(f'{out}: is a folder that holds other things than a page; name another')
    files.check_outputs([out / _PAGE, out / _NETWORK] if out.is_dir() else [out], *sources)
    program = runtime.load()
    with files.staging_folder(out) as folder:
        network = folder / _NETWORK
        yield network
        parts = {_NETWORK: network.read_bytes(), **program}
        html = _html(_info(network), parts if single_file else {}).encode()
        if is_file:
            (folder / out.name).write_bytes(html)
            return
        beside = {} if single_file else parts | {name: (_HERE / name).read_bytes() for name in _OWN}
        (folder / out.name).mkdir()
        for name, content in {_PAGE: html, **beside}.items():
            (folder / out.name / name).write_bytes(content)


def page_of(network: str | Path, out: str | Path, single_file: bool) -> None:
    """The page of an ONNX file that is there already, e.g. int8; errors as of :func:`page`."""
    if suffix_of(network) != '.onnx':
        raise ValueError(f'{network}: a browser runs a checkpoint or *.onnx')
    with page(out, single_file, network) as path:
        shutil.copyfile(network, path)


def _info(path: Path) -> dict[str, Any]:
    """What ``page.js`` has to know of the network in ``path``."""
    network = open_network(path)
    told = Metadata.read(network.metadata)
    steps = told.pipeline()
    if not (steps and told.input and told.mean and told.std):
        raise ValueError(f'{path.name}: does not say which images it takes, as a page has to know')
    if (told.interpolation or 'bilinear') not in _INTERPOLATIONS:
        raise ValueError(f'a page resizes {" or ".join(_INTERPOLATIONS)}; the config says {told.interpolation}')
    names = told.labels or labels(None, network.num_classes or 0)
    fill = [round(sum(PAD) / 3)] * 3 if told.channels == 'gray' else PAD  # which pixels.js has no other place to know
    steps = [
        dict(step, fill=fill) if told.fit == 'pad' else step for step in steps[1:-1]
    ]  # between loading and packing
    program = f'{runtime.PACKAGE} {runtime.VERSION}'
    return told.values() | dict(labels=names, steps=steps, ground=GROUND, runtime=program)


def _html(info: dict[str, Any], packed: dict[str, bytes]) -> str:
    """The page, which has its other files in it where there are ``packed`` ones."""
    style, scripts = _read('page.css'), '\n'.join(map(_read, _SCRIPTS))
    if packed:
        policy = _POLICY.format(script=_hash(scripts), style=_hash(style), connect="'none'")
        style, scripts = f'<style>{style}</style>', f'<script>{scripts}</script>'
        for name, content in packed.items():
            data = b64encode(gzip.compress(content, 9, mtime=0)).decode()
            scripts = f'<script id="{name}" type="text/plain">{data}</script>\n{scripts}'
    else:
        policy = _POLICY.format(script="'self'", style="'self'", connect="'self'")
        style = '<link rel="stylesheet" href="page.css">'
        scripts = '\n'.join(f'<script src="{name}"></script>' for name in _SCRIPTS)
    text = json.dumps(info).replace('<', r'\u003c')  # so that no name ends the element
    return Template(_read(_PAGE)).substitute(policy=policy, style=style, info=text, scripts=scripts)


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding='utf-8')


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
