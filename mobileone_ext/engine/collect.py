"""What a test run says of each image, beside its metrics."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.hooks import Hook

from ..data.classes import labels
from ..deploy.explain import is_pooled, watch
from ..recipe.run import unwrap
from .finetuning.scores import Scores


class CollectHook(Hook):
    """Keeps the samples of a test run, and where the network looked for each one's best class.

    Attributes:
        samples: as the head of the network gives them.
        levels: of each batch (n, h, w), see :func:`mobileone_ext.deploy.explain.gray_levels`; of a network that
            :func:`mobileone_ext.deploy.explain.is_pooled` is not true of, none.
    """

    def __init__(self):
        self.samples, self.levels, self._looked = [], [], None

    def before_test(self, runner) -> None:
        model = unwrap(runner.model)
        self._looked = watch(model) if is_pooled(model) else None

    def after_test_iter(self, runner, batch_idx: int, data_batch=None, outputs: Sequence | None = None) -> None:
        self.samples += outputs
        if self._looked:
            self.levels.append(self._looked(torch.stack([sample.pred_score for sample in outputs]).argmax(1)))

    def scores(self, classes: Sequence[str] | None, multi_label: bool) -> Scores:
        """Of every image; one without a file is called by its number.

        Raises:
            ValueError: for samples without scores of classes.
        """
        if not all('pred_score' in sample and 'gt_label' in sample for sample in self.samples):
            raise ValueError('--html: shows what classifiers say of labeled images; this network gives no such scores')
        scores = torch.stack([sample.pred_score for sample in self.samples]).float().cpu().numpy()
        truth = np.zeros(scores.shape, dtype=bool)
        for row, sample in zip(truth, self.samples):
            row[sample.gt_label.tolist()] = True
        paths = [sample.get('img_path') or f'image {number}' for number, sample in enumerate(self.samples)]
        return Scores(paths, truth, scores, tuple(labels(classes, scores.shape[1])), multi_label)
