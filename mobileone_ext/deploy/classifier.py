"""A classifier with all that is known of it, of any kind of file or a network in memory: pixels in, scores out.

What says itself which images it takes needs no config: an exported file not even torch, a fused checkpoint torch alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from ..data.reading import Photos
from ..metadata import Metadata, metadata_of
from .formats.base import Network
from .runtime import check_finite, file_of, input_of, is_exported, open_network

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

    from ..data.pixels import Preprocessing


class Classifier:
    """Call it with pixels (N, C, H, W), 0 .. 255, to get scores (N, classes).

    Args:
        path: of its file, or what it is.
        preprocessing: of the photos.
        outputs: of pixels, the logits (N, classes); the logarithm of scores where a network gives no others.
        classes: names, None if nothing tells them.
        multi_label: each score is of its own, so that an image may have several labels.
        note: what to tell of where this is from.
        metadata: what it says of itself; its temperature is in the scores.

    Attributes:
        gives_logits: whether they were logits so far.
        looked: where it looked on the last images for classes (N,), see :func:`mobileone_ext.deploy.explain.watch`;
            None unless it was opened with ``explain``.
    """

    def __init__(
        self,
        path: str,
        preprocessing: Union['Preprocessing', Photos],
        outputs: Callable[[np.ndarray], np.ndarray],
        classes: Sequence[str] | None,
        multi_label: bool = False,
        note: str = '',
        metadata: Metadata | None = None,
    ):
        self.path, self.preprocessing, self.outputs, self.classes = path, preprocessing, outputs, classes
        self.multi_label, self.note, self.gives_logits = multi_label, note, True
        self.looked: Callable[..., np.ndarray] | None = None
        self.metadata = metadata or Metadata()

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        scores = self.scores(self.outputs(pixels))
        check_finite(np.isfinite(scores).all(1), self.path)  # or NaN would be sorted
        return scores

    def scores(self, outputs: np.ndarray) -> np.ndarray:
        outputs = outputs / (self.metadata.temperature or 1)
        if self.multi_label:
            return np.exp(-np.logaddexp(0, -outputs))
        powers = np.exp(outputs - outputs.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)


def open_classifier(
    network: Union[str, Path, 'nn.Module', Classifier],
    config: Union[str, 'Config', None] = None,
    *,
    otherwise: str | None = None,
    metadata: Metadata | None = None,
    options: dict | None = None,
    ema: str = 'auto',
    trust: bool = False,
    takes: str | None = None,
    explain: bool = False,
) -> Classifier:
    """A classifier, to be used more than once: what takes a network takes this as well.

    Args:
        network: a checkpoint of any layout and form, an exported file, a run's folder, published weights by name, or a
            network that makes logits (N, classes) of images (N, C, H, W).
        config: of the network, or its path; None takes what the file says itself.
        otherwise: path of the config of a file that says nothing.
        metadata: of a network in memory, see :func:`mobileone_ext.metadata.metadata_of`.
        options: as of :func:`mobileone_ext.config.load_config`.
        ema, trust: as of :func:`mobileone_ext.checkpoints.load.load_weights`.
        takes: what goes into a file that does not say so, ``'normalized'`` or ``'pixels'``.
        explain: it is also to tell where it looks, which a checkpoint does.

    Raises:
        OSError, ValueError: for a file that does not open, or does not say what it takes; for a network of another
            class count than the config's.
    """
    if isinstance(network, Classifier):
        return network
    if not isinstance(network, str | Path):
        from .formats.modules import opened

        return by_metadata(type(network).__name__, opened(network), metadata_of(network, metadata))
    path = file_of(str(network))
    if explain and is_exported(path):
        raise ValueError(f'{path}: a checkpoint tells where it looks; export --heatmap gives a file a second output')
    if config is None and not options and not explain:
        found = open_network(path) if is_exported(path) else None if trust or ema != 'auto' else _plain(path)
        said = Metadata.read(found.metadata) if found else Metadata()
        # Classes without names are told by their numbers, unless a config is there to ask.
        if found and (said.is_enough or (said.says_images and not otherwise)):
            classifier = by_metadata(path, found, replace(said, input=input_of(found, path, takes)[0]))
            classifier.note = f'{path}: {said.note}'
            return classifier
    from .described import find_network

    described = find_network(path, config, otherwise, options, trust)
    return _by_config(described.config, path, described.note, ema, trust, takes, explain)


def by_metadata(path: str, network: Network, metadata: Metadata) -> Classifier:
    """An opened network as its metadata describe it."""
    preprocessing, known = Photos(metadata), metadata.labels

    def outputs(pixels: np.ndarray) -> np.ndarray:
        try:
            output = network(pixels if metadata.takes_pixels else preprocessing.normalize(pixels))
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from error
        if known and output.shape != (len(pixels), len(known)):
            raise ValueError(f'{path}: has {output.shape[-1]} outputs and {len(known)} names of classes')
        return output if classifier.gives_logits else np.log(output.clip(np.finfo(output.dtype).tiny))

    several = metadata.labels_of_an_image == 'several'
    classifier = Classifier(path, preprocessing, outputs, known, several, metadata=metadata)
    classifier.gives_logits = metadata.output != 'probabilities'
    return classifier


def _plain(path: str) -> Network | None:
    """A checkpoint whose metadata name the network that torch alone builds; None for any other."""
    from ..checkpoints.load import read_checkpoint
    from ..models import create_model
    from .formats.modules import opened

    checkpoint: Any = read_checkpoint(path)
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    said = Metadata.read(meta) if isinstance(meta, dict) else Metadata()
    if not (said.architecture and said.is_enough):
        return None
    model = create_model(said.architecture, path, len(said.labels or ()), in_chans=len(said.mean or ()))
    return opened(model, said.write())


def _by_config(
    config: 'Config', path: str, note: str, ema: str, trust: bool, takes: str | None, explain: bool
) -> Classifier:
    """The classifier in ``path``, with the names that it has itself, or else the config's."""
    import torch

    from ..data.classes import is_multi_label
    from ..data.pixels import Preprocessing
    from . import fuse
    from .exported import ExportedClassifier

    if is_exported(path):
        exported = ExportedClassifier(config, path, takes)
        preprocessing, classes, said = exported.preprocessing, exported.classes, exported.metadata
    else:
        exported, preprocessing = None, Preprocessing(config)
        model = fuse.load_model(config, fuse.read_weights(config, path, ema, trust))
        classes, said = model.classes, model.said

    @torch.no_grad()
    def outputs(pixels: np.ndarray) -> np.ndarray:
        taken = torch.as_tensor(pixels)
        if exported:
            return exported.logits(taken).numpy()
        images = preprocessing.normalize(taken)
        logits = model(images)
        if not isinstance(logits, torch.Tensor):  # a head of several outputs knows what to make of them
            classifier.gives_logits = False
            scores = torch.stack([sample.pred_score for sample in model(images, mode='predict')])
            logits = scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
        return logits.numpy()

    classifier = Classifier(path, preprocessing, outputs, classes, is_multi_label(config), note, said)
    classifier.gives_logits = not (exported and exported.probabilities)
    if explain:
        from .explain import watch

        looked = watch(model)
        classifier.looked = lambda classes: looked(torch.as_tensor(classes))
    return classifier
