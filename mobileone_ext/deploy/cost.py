"""What a network costs: parameters, multiply-adds, latency."""

from collections.abc import Sequence

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.benchmark import Timer


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: nn.Module, size: int | Sequence[int]) -> int:
    """Multiply-adds of one image of ``size`` pixels (a side, or height and width), backbone and pooling.

    Counted as mmpretrain counts them.
    """
    features = nn.Sequential(model.backbone, model.neck)
    image = torch.zeros(1, model.backbone.in_channels, *sides(size), device=model_device(model))
    return int(FlopCountAnalysis(features, image).unsupported_ops_warnings(False).total())


def model_device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width in pixels, of a size that may be one number for both."""
    return (size, size) if isinstance(size, int) else tuple(size)


def latency(model: nn.Module, size: int | Sequence[int], seconds: float = 1.0) -> float:
    """Median milliseconds for one image of ``size`` pixels on the model's device, all threads."""
    image = torch.randn(1, model.backbone.in_channels, *sides(size), device=model_device(model))
    with torch.inference_mode():
        timer = Timer('model(image)', globals=dict(model=model, image=image), num_threads=torch.get_num_threads())
        return timer.blocked_autorange(min_run_time=seconds).median * 1e3
