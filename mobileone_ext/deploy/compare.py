"""Classifiers held against each other on real images.

NaN fails every comparison here: outputs that are not finite are refused, since none of them is a prediction.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from mmpretrain.evaluation import Accuracy
from mmpretrain.models.heads import MultiLabelClsHead
from torch import Tensor, nn

from .anywhere import check_finite, image_channels, noise

__all__ = ['Difference', 'check_finite', 'compare', 'image_channels', 'refuse_not_finite', 'top_accuracies']
FUSION = ('the network before fusion', 'the fused network')


@dataclass
class Difference:
    """How far outputs lie from the expected ones, over all batches that were added.

    Attributes:
        multi_label: an image has each label whose logit is above 0, instead of that of the largest output.
        changed_predictions: images whose label or labels are others.
        max_abs_diff, max_rel_diff: largest difference of an output, and of the image's largest absolute output.
    """

    multi_label: bool = False
    num_images: int = 0
    changed_predictions: int = 0
    max_abs_diff: float = 0.0
    max_rel_diff: float = 0.0

    def add(self, expected: Tensor, actual: Tensor, names: tuple[str, str] = ('the first', 'the second')) -> Tensor:
        """Add a batch of outputs (N, classes) of the networks called ``names``; (N,), which predictions changed.

        Raises:
            ValueError: if an output is NaN or infinite.
        """
        for outputs, name in zip((expected, actual), names):
            check_finite(outputs, name)
        expected, actual = expected.detach().cpu().double(), actual.detach().cpu().double()
        difference = (actual - expected).abs().amax(1)
        largest = expected.abs().amax(1).clamp_min(torch.finfo(torch.float64).tiny)
        self.num_images += len(expected)
        labels = [(outputs > 0) if self.multi_label else outputs.argmax(1, True) for outputs in (expected, actual)]
        changed = (labels[0] != labels[1]).any(1)
        self.changed_predictions += int(changed.sum())
        self.max_abs_diff = max(self.max_abs_diff, float(difference.max()))
        self.max_rel_diff = max(self.max_rel_diff, float((difference / largest).max()))
        return changed

    def check(self, max_flips: int | None = 0, tolerance: float | None = None) -> None:
        """Raise ValueError if more predictions changed, or outputs differ by more; None allows any."""
        if not self.num_images:
            raise ValueError('there are no images to compare on')
        too_many = max_flips is not None and not self.changed_predictions <= max_flips
        too_far = tolerance is not None and not self.max_rel_diff <= tolerance
        if too_many or too_far:
            allowed = f' (allowed {max_flips})' if too_many else ''
            raise ValueError(
                f'{self.changed_predictions} of {self.num_images} predictions changed{allowed}, '
                f'outputs differ by {self.max_rel_diff:.1e} of the largest'
            )


def refuse_not_finite(name: str):
    """A forward hook for a head: raises ValueError if its outputs are not finite."""

    def hook(module: nn.Module, inputs: tuple, outputs: Tensor | Iterable[Tensor]) -> None:
        outputs = getattr(outputs, 'logits', outputs)  # Hugging Face's
        for output in [outputs] if isinstance(outputs, Tensor) else outputs:
            check_finite(output, name)

    return hook


@torch.no_grad()
def relative_difference(backbone: nn.Module, other: nn.Module) -> float:
    """Largest difference of two backbones' outputs on noise, of the largest output, both in float64.

    Raises:
        ValueError: if an output is not finite.
    """
    images = noise(backbone).double()
    outputs = (copy.deepcopy(net).double()(images)[-1].flatten(1) for net in (backbone, other))
    difference = Difference()
    difference.add(*outputs, names=FUSION)
    return difference.max_rel_diff


class Measured(NamedTuple):
    """A network on images: top-1 and top-5 in percent (None where an image may have several labels), and how far its
    outputs lie from the first network's."""

    top1: float | None
    top5: float | None
    difference: Difference


@torch.no_grad()
def compare(networks: Mapping[str, Callable[[Tensor], Tensor]], batches: Iterable[dict]) -> dict[str, Measured]:
    """Networks on the same images, by name.

    Args:
        networks: each makes outputs (N, classes) of normalized images; the first is a classifier of mmpretrain.
        batches: of a test loader, as mmpretrain's classifiers take them.

    Raises:
        ValueError: if an output is not finite, or there is no image.
    """
    first, reference = next(iter(networks.items()))
    multi_label = isinstance(reference.head, MultiLabelClsHead)
    outputs, labels = {name: [] for name in networks}, []
    differences = {name: Difference(multi_label) for name in networks}
    for batch in batches:
        batch = reference.data_preprocessor(batch)
        for name, network in networks.items():
            outputs[name].append(network(batch['inputs']).cpu())
            differences[name].add(outputs[first][-1], outputs[name][-1], (first, name))
        labels.extend(sample.gt_label.cpu() for sample in batch['data_samples'])
    differences[first].check()
    return {
        name: Measured(
            *((None, None) if multi_label else top_accuracies(torch.cat(parts), torch.cat(labels))), differences[name]
        )
        for name, parts in outputs.items()
    }


def top_accuracies(logits: Tensor, labels: Tensor) -> tuple:
    """Top-1 and top-5 in percent; with fewer than five classes the latter counts all of them."""
    check_finite(logits, 'the network')  # topk takes NaN for the largest
    (top1,), (top5,) = Accuracy.calculate(logits, labels, topk=(1, min(5, logits.shape[1])), thrs=(None,))
    return float(top1), float(top5)
