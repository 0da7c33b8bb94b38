"""Exported files, opened for use: every format of :mod:`.formats` behind one call."""

from pathlib import Path

from ..files import suffix_of
from .formats import FORMAT_OF_SUFFIX, torchscript
from .formats.base import Network, load_format, using

__all__ = ['Network', 'is_exported', 'open_network']


def is_exported(path: str | Path) -> bool:
    """Whether ``path`` is to be opened by :func:`open_network`; otherwise it is a checkpoint.

    The suffix tells, and for ``*.pt`` what is in the file: weights have that suffix too.
    """
    path = Path(path)
    if suffix_of(path) == '.pt':
        return path.is_file() and torchscript.kind_of(path) is not None
    return suffix_of(path) in FORMAT_OF_SUFFIX


def open_network(path: str | Path, threads: int | None = None, batch: int | None = None) -> Network:
    """Open a file that :mod:`mobileone_ext.deploy.export`, the quantizer or another tool wrote, by its suffix.

    Args:
        threads: of the runtime; None takes its default.
        batch: the one number of images of every call, if known: ONNX and OpenVINO are faster so.

    Raises:
        OSError: if there is no such file.
        ValueError: for another suffix, a runtime that is not installed, or a file that it refuses.
    """
    path = Path(path)
    if suffix_of(path) not in FORMAT_OF_SUFFIX:
        raise ValueError(f'{path}: cannot be run here; files of {", ".join(FORMAT_OF_SUFFIX)} can')
    name = FORMAT_OF_SUFFIX[suffix_of(path)]
    if not path.exists():
        raise FileNotFoundError(f'{path}: no such file')
    with using(name, f'{path}: not a network that the runtime reads'):
        return load_format(name).open_file(path, threads, batch)
