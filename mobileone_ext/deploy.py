"""From trained branches to a deployed network, and the proof that it is the same one.

Build the network that a checkpoint needs, fuse it, write it with its provenance,
and hold the file that was written against its source on real images.
"""

import copy
import hashlib
from pathlib import Path
from typing import Dict, Iterable, Union

import mmengine
import torch
from fvcore.nn import FlopCountAnalysis
from mmengine.config import Config
from mmpretrain.evaluation import Accuracy
from mmpretrain.registry import MODELS
from rich.progress import track
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from . import __version__
from .checkpoints import Weights, load_strict

# Relative to the largest output. Rounding the fused weights to float32 costs about 1e-6 for any variant.
FUSION_TOLERANCE = 1e-4


def build_model(config: Config, form: str) -> nn.Module:
    """The config's classifier in eval mode, its backbone ``'branched'`` or ``'fused'``."""
    model = copy.deepcopy(config.model)
    model.backbone.deploy = form == 'fused'
    return MODELS.build(model).eval()


def load_model(config: Config, weights: Weights, name: Union[str, Path]) -> nn.Module:
    """The config's classifier in the form of ``weights``, loaded strictly; ``name`` is for messages."""
    model = build_model(config, weights.form)
    load_strict(model, weights, str(name))
    return model


def fuse(model: nn.Module) -> nn.Module:
    """A fused copy of a classifier in eval mode.

    Raises:
        ValueError: if the copy does not compute what the branches do.
    """
    fused = copy.deepcopy(model)
    fused.backbone.switch_to_deploy()
    difference = relative_difference(model.backbone, fused.backbone)
    if not difference <= FUSION_TOLERANCE:
        raise ValueError(f'the fusion is wrong: outputs differ by {difference:.1e} of the largest')
    return fused


@torch.no_grad()
def relative_difference(backbone: nn.Module, other: nn.Module) -> float:
    """Largest difference of two backbones' outputs on noise over the largest output, both in float64."""
    expected, found = copy.deepcopy(backbone).double(), copy.deepcopy(other).double()
    images = torch.randn(
        2, backbone.stage0.in_channels, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    expected, found = expected(images)[-1], found(images)[-1]
    return float((found - expected).abs().max() / expected.abs().max())


def save_fused(model: nn.Module, path: Union[str, Path], config: Config, source: Union[str, Path], origin: str) -> None:
    """Save a fused classifier's weights with ``meta``: source file, its sha256, config, versions.

    Args:
        source: the checkpoint that the weights come from.
        origin: the place in that file, e.g. ``'state_dict (EMA)'``.
    """
    meta = dict(
        source=Path(source).name,
        source_sha256=hashlib.sha256(Path(source).read_bytes()).hexdigest(),
        source_weights=origin,
        config=config.pretty_text,
        versions={'mobileone_ext': __version__, 'torch': str(torch.__version__), 'mmengine': mmengine.__version__},
    )
    state = {key: tensor.detach().contiguous() for key, tensor in model.state_dict().items()}
    torch.save({'meta': meta, 'state_dict': state}, path)


@torch.no_grad()
def compare(before: nn.Module, after: nn.Module, batches: Iterable[dict]) -> Dict[str, float]:
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


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: nn.Module, size: int) -> int:
    """Multiply-adds of one image of ``size`` pixels, backbone and pooling, as mmpretrain counts them."""
    features = nn.Sequential(model.backbone, model.neck)
    image = torch.zeros(1, model.backbone.stage0.in_channels, size, size, device=model_device(model))
    return int(FlopCountAnalysis(features, image).unsupported_ops_warnings(False).total())


def model_device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def latency(model: nn.Module, size: int, seconds: float = 1.0) -> float:
    """Median milliseconds for one image of ``size`` pixels on the model's device, all threads."""
    image = torch.randn(1, model.backbone.stage0.in_channels, size, size, device=model_device(model))
    with torch.inference_mode():
        timer = Timer('model(image)', globals=dict(model=model, image=image), num_threads=torch.get_num_threads())
        return timer.blocked_autorange(min_run_time=seconds).median * 1e3
