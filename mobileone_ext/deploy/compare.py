"""Two networks held against each other: on noise, and on real images."""

import copy
from collections.abc import Iterable

import torch
from mmpretrain.evaluation import Accuracy
from rich.progress import track
from torch import Tensor, nn


@torch.no_grad()
def relative_difference(backbone: nn.Module, other: nn.Module) -> float:
    """Largest difference of two backbones' outputs on noise over the largest output, both in float64."""
    expected, found = copy.deepcopy(backbone).double(), copy.deepcopy(other).double()
    images = torch.randn(
        2, backbone.in_channels, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    expected, found = expected(images)[-1], found(images)[-1]
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def compare(before: nn.Module, after: nn.Module, batches: Iterable[dict]) -> dict[str, float]:
    """Accuracy of two classifiers on the same images, and how far their outputs lie apart.

    Args:
        batches: of a test loader, as mmpretrain's classifiers take them.

    Returns:
        ``top1_before``, ``top1_after``, ``top5_before``, ``top5_after`` (percent),
        ``num_images``, ``changed_predictions``, ``max_abs_logit_diff`` and
        ``max_rel_logit_diff`` (of the image's largest absolute logit).
    """
    logits_before, logits_after, labels = [], [], []
    for batch in batches:
        batch = before.data_preprocessor(batch)
        logits_before.append(before(batch['inputs']).cpu())
        logits_after.append(after(batch['inputs']).cpu())
        labels.extend(sample.gt_label.cpu() for sample in batch['data_samples'])
    logits_before, logits_after, labels = (torch.cat(parts) for parts in (logits_before, logits_after, labels))
    difference = (logits_after - logits_before).abs()
    report = dict(
        num_images=len(labels),
        changed_predictions=int((logits_before.argmax(1) != logits_after.argmax(1)).sum()),
        max_abs_logit_diff=float(difference.max()),
        max_rel_logit_diff=float((difference.amax(1) / logits_before.abs().amax(1)).max()),
    )
    for name, logits in (('before', logits_before), ('after', logits_after)):
        report[f'top1_{name}'], report[f'top5_{name}'] = top_accuracies(logits, labels)
    return report


def top_accuracies(logits: Tensor, labels: Tensor) -> tuple:
    """Top-1 and top-5 in percent; with fewer than five classes the latter counts all of them."""
    (top1,), (top5,) = Accuracy.calculate(logits.softmax(1), labels, topk=(1, min(5, logits.shape[1])))
    return float(top1), float(top5)


def with_progress(batches: Iterable, description: str) -> Iterable:
    """``batches`` behind a progress bar on a terminal."""
    return track(batches, description=description, transient=True)
