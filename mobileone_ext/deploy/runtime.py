"""Exported files, opened for use: every format of :mod:`.formats` behind one call, without torch but for its own."""

from pathlib import Path

import numpy as np

from ..data.reading import Photos
from ..files import suffix_of
from ..metadata import Metadata
from .formats import FORMAT_OF_SUFFIX
from .formats.base import Network, load_format, using

INPUTS = ('normalized', 'pixels')


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
        raise FileNotFoundError(f'{path}: no such file')
    with using(name, f'{path}: not a network that the runtime reads'):
        return load_format(name).open_file(path, threads, batch)


class FileClassifier:
    """An exported file that says itself what it takes: pixels (N, C, H, W), 0 .. 255 -> scores (N, classes).

    Args:
        takes: what goes in, where the file does not say, one of ``INPUTS``.

    Attributes:
        preprocessing: of the photos.
        classes: names, or numbers where it has none.
        note: what to tell of where this is from.

    Raises:
        OSError, ValueError: for a file that does not open, or does not say what it takes.
    """

    def __init__(self, path: str, takes: str | None = None):
        self.path, self.network = path, open_network(path)
        self.metadata = Metadata.read(self.network.metadata)
        if not self.metadata.is_enough:
            raise ValueError(f'{path}: does not say which images it takes; name its config (--help says how)')
        self.takes, _ = input_of(self.network, path, takes)
        self.preprocessing, self.classes = Photos(self.metadata), self.metadata.labels
        self.note = f'{path}: {self.metadata.note}'

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        try:
            output = self.network(pixels if self.takes == 'pixels' else self.preprocessing.normalize(pixels))
        except ValueError as error:
            raise ValueError(f'{self.path}: {error}') from error
        if output.shape != (len(pixels), len(self.classes)):
            raise ValueError(f'{self.path}: has {output.shape[-1]} outputs and {len(self.classes)} names of classes')
        check_finite(np.isfinite(output).all(1), self.path)
        if self.metadata.output == 'probabilities':
            return output
        if self.metadata.labels_of_an_image == 'several':
            return np.exp(-np.logaddexp(0, -output))
        powers = np.exp(output - output.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)


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
