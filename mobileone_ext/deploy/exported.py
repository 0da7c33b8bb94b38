"""An exported file with the interface of mmpretrain's classifiers, for the same pipeline, loop and evaluator."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..data.classes import check_same, class_names, is_multi_label, num_classes
from ..data.pixels import Preprocessing
from ..metadata import Metadata
from .compare import Difference, check_finite
from .runtime import input_of, open_network


class ExportedClassifier(BaseModel):
    """A file on the config's test images: pixels in, logits or predictions out.

    Args:
        path: of a file that :func:`mobileone_ext.deploy.runtime.open_network` reads.
        takes: one of :data:`mobileone_ext.deploy.runtime.INPUTS`, for a file that does not say what goes in.
        reference: a classifier to hold the file against, in eval mode.
        threads: of the runtime; None takes its default.

    Attributes:
        difference: from ``reference``, over all batches that went through ``mode='predict'``.
        metadata: what the file says of itself.
        classes: names of the file's classes, or else the config's; None if neither tells.
        assumed: what is told to the user: the file did not say what it takes.

    Raises:
        ValueError: for a network of another class count or input than the config's, or an int8 file that does not say
            what goes in.
    """

    def __init__(
        self,
        config: Config,
        path: str | Path,
        takes: str | None = None,
        reference: nn.Module | None = None,
        threads: int | None = None,
    ):
        # The preprocessor puts channels into their order; mean and std come after it, where the file wants them.
        settings = config.model.get('data_preprocessor') or config.get('data_preprocessor') or {}
        preprocessor = dict(settings, mean=None, std=None)
        preprocessor.setdefault('type', 'ClsDataPreprocessor')
        super().__init__(MODELS.build(preprocessor))
        self.path, self.network = path, open_network(path, threads)
        self.takes, self.assumed = input_of(self.network, path, takes)
        self.metadata = metadata = Metadata.read(self.network.metadata)
        self.probabilities = metadata.output == 'probabilities'
        self.preprocessing = Preprocessing(config)
        self.num_classes = num_classes(config) or self.network.num_classes
        self.head = MODELS.build(config.model.get('head') or dict(type='ClsHead'))
        self.reference, self.difference = reference, Difference(is_multi_label(config))
        if self.network.num_classes not in (None, self.num_classes):
            raise ValueError(f'{path}: has {self.network.num_classes} classes, the config has {self.num_classes}')
        check_same(metadata.names, class_names(config), str(path), 'the config')
        self.classes = metadata.names or class_names(config)

    @torch.no_grad()
    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'):
        """Logits (N, classes) of pixels 0 .. 255 (N, C, H, W), or in mode ``predict`` the samples with predictions."""
        if mode not in ('tensor', 'predict'):
            raise ValueError(f'mode {mode!r}: an exported file is not trained')
        inputs = inputs.cpu()
        logits = self.logits(inputs)
        check_finite(logits, str(self.path))
        if self.reference is not None and mode == 'predict':
            self.difference.add(self._expected(inputs), logits, ('the checkpoint', str(self.path)))
        return logits if mode == 'tensor' else self.head._get_predictions(logits, data_samples)

    def logits(self, pixels: Tensor) -> Tensor:
        """What the file says of pixels (N, C, H, W); the logarithm of probabilities."""
        images = pixels if self.takes == 'pixels' else self.preprocessing.normalize(pixels)
        try:
            output = torch.from_numpy(self.network(images.float().numpy()))
        except ValueError as error:
            raise ValueError(f'{self.path}: {error}') from error
        if output.shape != (len(pixels), self.num_classes):
            raise ValueError(f'{self.path}: has {output.shape[-1]} classes, the config has {self.num_classes}')
        return output.clamp_min(torch.finfo(output.dtype).tiny).log() if self.probabilities else output

    def _expected(self, pixels: Tensor) -> Tensor:
        expected = self.reference(self.preprocessing.normalize(pixels))
        return expected.log_softmax(1) if self.probabilities else expected
