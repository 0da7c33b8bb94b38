"""A classifier of a checkpoint or an exported file, by its config: pixels in, scores out."""

from collections.abc import Callable, Sequence

import torch
from mmengine.config import Config
from torch import Tensor

from ..data.classes import is_multi_label
from ..data.pixels import Preprocessing
from . import fuse
from .compare import check_finite
from .exported import ExportedClassifier
from .runtime import is_exported


class Classifier:
    """Call it with pixels (N, C, H, W), 0 .. 255, to get scores (N, classes).

    Args:
        path: of its file.
        preprocessing: of the photos.
        outputs: of pixels, the logits (N, classes); the logarithm of scores where a network gives no others.
        classes: names, None if nothing tells them.

    Attributes:
        gives_logits: whether they were logits so far.
        multi_label: each score is of its own, so that an image may have several labels.
        note: what to tell of where the config is from.
    """

    note = ''

    def __init__(
        self,
        path: str,
        preprocessing: Preprocessing,
        outputs: Callable[[Tensor], Tensor],
        classes: Sequence[str] | None,
    ):
        self.path, self.preprocessing, self.outputs, self.classes = path, preprocessing, outputs, classes
        self.gives_logits, self.multi_label = True, is_multi_label(preprocessing.config)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        scores = self.scores(self.outputs(torch.as_tensor(pixels)))
        check_finite(scores, 'the network')  # or NaN would be sorted
        return scores

    def scores(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid() if self.multi_label else outputs.softmax(1)


def open_classifier(
    config: Config, path: str, ema: str = 'auto', trust: bool = False, takes: str | None = None
) -> Classifier:
    """The classifier in ``path``, with the names that it has itself, or else the config's.

    Args:
        path: a checkpoint of any layout and form, or an exported file.
        takes: what goes into a file that does not say so, see :class:`ExportedClassifier`.

    Raises:
        ValueError: for a network of another class count than the config's.
    """
    if is_exported(path):
        exported = ExportedClassifier(config, path, takes)
        classifier = Classifier(path, exported.preprocessing, exported.logits, exported.classes)
        classifier.gives_logits = not exported.probabilities
        return classifier
    preprocessing = Preprocessing(config)
    model = fuse.load_model(config, fuse.read_weights(config, path, ema, trust))

    def outputs(pixels: Tensor) -> Tensor:
        images = preprocessing.normalize(pixels)
        logits = model(images)
        if isinstance(logits, Tensor):
            return logits
        classifier.gives_logits = False  # a head of several outputs knows what to make of them
        scores = torch.stack([sample.pred_score for sample in model(images, mode='predict')])
        return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()

    classifier = Classifier(path, preprocessing, outputs, model.classes)
    return classifier
