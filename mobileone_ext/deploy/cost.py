"""What a network costs: parameters, multiply-adds, latency."""

from collections.abc import Sequence

import torch
from fvcore.nn import FlopCountAnalysis
from mmpretrain.models.utils import SELayer
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from .compare import image_channels


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: nn.Module, size: int | Sequence[int]) -> int:
    """Multiply-adds of one image of ``size`` pixels (a side, or height and width), backbone and pooling.

    Counted as mmpretrain counts them.
    """
    parts = (getattr(model, name, None) for name in ('backbone', 'neck'))
    features = nn.Sequential(*filter(None, parts)) if hasattr(model, 'backbone') else model
    image = torch.zeros(1, image_channels(model), *sides(size), device=model_device(model))
    return int(
        FlopCountAnalysis(features, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
    )


@torch.no_grad()
def count_as_thop(model: nn.Module, size: int | Sequence[int]) -> int:
    """What thop counts for one image of ``size`` pixels in a fused classifier, without the pooling inside SE.

    A convolution or linear layer counts a multiplication for each weight at each output; average pooling, an addition
    for each input and a division for each output; biases and activations, nothing.
    """
    counts: list[int] = []

    def count_weights(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        counts.append(output.numel() * layer.weight[0].numel())

    def count_pooling(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        counts.append(inputs[0].numel() + output.numel())

    inside_se = {part for module in model.modules() if isinstance(module, SELayer) for part in module.modules()}
    handles = []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            handles.append(module.register_forward_hook(count_weights))
        elif isinstance(module, nn.AdaptiveAvgPool2d) and module not in inside_se:
            handles.append(module.register_forward_hook(count_pooling))
    try:
        model(torch.zeros(1, image_channels(model), *sides(size), device=model_device(model)))
    finally:
        for handle in handles:
            handle.remove()
    return sum(counts)


def vendor_gflops(thop_count: int) -> float:
    """The column "FLOPs (G)" of model zoos that print twice :func:`count_as_thop` over 0.9e9, to three decimals."""
    return round(2 * thop_count / 0.9e9, 3)


def describe(model: nn.Module, size: int | Sequence[int], vendors: bool = False) -> str:
    """One line: parameters and multiply-adds of a fused classifier, and on demand the ``vendors``' column."""
    height, width = sides(size)
    line = f'{count_parameters(model):,} parameters, {count_multiply_adds(model, size):,} multiply-adds '
    line += f'at {height} x {width}'
    if vendors:
        gflops = vendor_gflops(count_as_thop(model, size))
        line += f'; FLOPs (G) as vendors print them, 2 x thop / 0.9e9: {gflops:.3f}'
    return line


def model_device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width in pixels, of a size that may be one number for both."""
    return (size, size) if isinstance(size, int) else tuple(size)


def latency(model: nn.Module, size: int | Sequence[int], seconds: float = 1.0) -> float:
    """Median milliseconds for one image of ``size`` pixels on the model's device, all threads."""
    image = torch.randn(1, image_channels(model), *sides(size), device=model_device(model))
    with torch.inference_mode():
        timer = Timer('model(image)', globals=dict(model=model, image=image), num_threads=torch.get_num_threads())
        return timer.blocked_autorange(min_run_time=seconds).median * 1e3
