"""Exported files, opened for use: every format of :mod:`.formats` behind one call, without torch but for its own.

And which file a name stands for.
"""

import re
from pathlib import Path

import numpy as np

from ..data.images import SUFFIXES, images_below
from ..files import CONFIG_SUFFIXES, near, suffix_of
from ..text import abbreviate
from .formats import FORMAT_OF_SUFFIX
from .formats.base import Network, load_format, using

INPUTS = ('normalized', 'pixels')
_FUSED = 'fused.pth'  # what tools/finetune.py leaves for use
_NEWEST = 'last_checkpoint'  # mmengine's file with the path of the newest one
_STEP = re.compile(r'(?:epoch|iter)_(\d+)\.pth')
_RUN = 'run'  # in the folder of a fine-tuning
_NETWORK = "a network is needed here: a checkpoint, a run's folder or an exported file"


def is_exported(path: str | Path) -> bool:
    """Whether ``path`` is to be opened by :func:`open_network`; otherwise it is a checkpoint.

    The suffix tells, and for ``*.pt`` what is in the file: weights have that suffix too.
    """
    path = Path(path)
    if suffix_of(path) == '.pt':
        return path.is_file() and load_format('torchscript').kind_of(path) is not None
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
        raise FileNotFoundError(f'{path}: no such file{near(path)}')
    with using(name, f'{path}: not a network that the runtime reads'):
        return load_format(name).open_file(path, threads, batch)


def names_config(name: str) -> bool:
    """Whether ``name``, where a network or its config may stand, is a config's: by its suffix, or of one that ships."""
    if suffix_of(name) in CONFIG_SUFFIXES:
        return True
    try:
        if Path(name).exists():
            return False
        from ..config import find_file

        return bool(find_file(name))
    except OSError:
        return False


def file_of(name: str) -> str:
    """``name``, or of a run's folder, its checkpoint.

    Raises:
        ValueError: for a folder that is no run's, for a photo, and for a config.
    """
    if suffix_of(name) in CONFIG_SUFFIXES:
        raise ValueError(f'{name}: is a config; {_NETWORK}, behind its config')
    if suffix_of(name) in SUFFIXES:
        raise ValueError(f'{name}: is a photo; {_NETWORK}')
    return checkpoint_of_run(Path(name)) if Path(name).is_dir() and not is_exported(name) else name


def is_run(path: str | Path) -> bool:
    """Whether ``path`` is the folder of a run, with a checkpoint."""
    return Path(path).is_dir() and _checkpoint_in(Path(path)) is not None


def checkpoint_of_run(folder: Path) -> str:
    """The checkpoint to use in a run's folder: the fused one of a fine-tuning, else the best one, else the newest.

    Raises:
        ValueError: if there is none; it names the runs that are in the folder.
    """
    if found := _checkpoint_in(folder):
        return str(found)
    runs = [str(inner) for inner in sorted(folder.iterdir()) if is_run(inner)]
    hint = f'; there are {abbreviate(runs, 8)}' if runs else ''
    if not runs and images_below(folder):
        hint = f'; it holds photos; {_NETWORK}'
    raise ValueError(f'{folder}: no checkpoint of a run in this folder{hint}')


def _checkpoint_in(folder: Path) -> Path | None:
    if (folder / _FUSED).is_file():
        return folder / _FUSED
    best = sorted(folder.glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    steps = sorted((int(match[1]), path) for path in folder.iterdir() if (match := _STEP.fullmatch(path.name)))
    if (folder / _NEWEST).is_file():  # the folder may have moved since
        newest = folder / Path((folder / _NEWEST).read_text(encoding='utf-8').strip()).name
        steps += [(0, newest)] if newest.is_file() else []
    if best or steps:
        return best[-1] if best else steps[-1][1]
    return _checkpoint_in(folder / _RUN) if (folder / _RUN).is_dir() else None


def check_finite(good: np.ndarray, name: str) -> None:
    """Raise ValueError unless all are ``good``: whether (N,) each image's outputs of the network are finite."""
    if not good.all():
        raise ValueError(
            f'{name} has outputs that are not finite (NaN or infinite) for {int((~good).sum())} of {len(good)} images: '
            'its weights are broken, or it overflows'
        )


def input_of(network: Network, path: str | Path, takes: str | None) -> tuple[str, bool]:
    """What goes into a file, and whether that is assumed.

    Raises:
        ValueError: for another ``takes`` than the file says, or an int8 file that says nothing: its scales are made for
            one of the two, and with the other it predicts something all the same.
    """
    if network.takes_pixels is not None:
        said = INPUTS[network.takes_pixels]
        if takes not in (None, said):
            raise ValueError(f'{path}: takes {said} images, as its metadata say, not {takes}')
        return said, False
    if takes:
        return takes, False
    if network.int8:
        raise ValueError(
            f'{path}: an int8 file without metadata; --input {" or ".join(INPUTS)} says which images go in'
        )
    return 'normalized', True
