"""What a network costs: parameters, multiply-adds, latency."""

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from math import prod
from pathlib import Path
from statistics import median

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.analysis.jit_handles import get_shape
from mmpretrain.models.utils import SELayer
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from . import sides
from .compare import image_channels
from .export import DeployNet
from .formats.base import Request
from .formats.onnx import onnx_proto

COLUMNS = ('layer', 'operator', 'output', 'parameters', 'multiply-adds', 'ms')
_KERNEL = '_kernel_time'  # behind a node's name, in a profile of onnxruntime


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: nn.Module, size: int | Sequence[int]) -> int:
    """Multiply-adds of one image of ``size`` pixels (a side, or height and width), backbone and pooling.

    Counted as mmpretrain counts them.
    """
    parts = (getattr(model, name, None) for name in ('backbone', 'neck'))
    features = nn.Sequential(*filter(None, parts)) if hasattr(model, 'backbone') else model
    return int(_analysis(features, _image(model, size)).total())


def count_as_thop(model: nn.Module, size: int | Sequence[int]) -> int:
    """What thop counts for one image of ``size`` pixels in a fused classifier, without the pooling inside SE.

    A convolution or linear layer counts a multiplication for each weight at each output; average pooling, an addition
    for each input and a division for each output; biases and activations, nothing.
    """
    analysis = _analysis(model, _image(model, size))
    analysis.set_op_handle('aten::adaptive_avg_pool2d', lambda *sides: sum(prod(get_shape(side[0])) for side in sides))
    counts, modules = analysis.by_operator(), analysis.by_module()
    inside_se = (
        f'{name}.{inner}'
        for name, layer in model.named_modules()
        if isinstance(layer, SELayer)
        for inner, part in layer.named_modules()
        if isinstance(part, nn.AdaptiveAvgPool2d)
    )
    counted = sum(counts[operator] for operator in ('conv', 'linear', 'adaptive_avg_pool2d'))
    return int(counted - sum(modules[name] for name in inside_se))


def _analysis(model: nn.Module, image: Tensor) -> FlopAnalyzer:
    return FlopAnalyzer(model, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)


def _image(model: nn.Module, size: int | Sequence[int]) -> Tensor:
    """An image of noise, (1, C, H, W), on the model's device."""
    return torch.randn(1, image_channels(model), *sides(size), device=next(model.parameters()).device)


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


def layers(model: nn.Module, size: int | Sequence[int], runs: int = 20) -> list[tuple[str, str, str, int, int, float]]:
    """What each layer of a fused classifier costs for one image, as ONNX: rows of ``COLUMNS``.

    Milliseconds are the median of ``runs`` by onnxruntime's profiler, on one thread; what is no layer is one last row.
    """
    import onnx

    image = torch.zeros(1, image_channels(model), *sides(size))
    proto = onnx_proto(DeployNet(model), image, Request(dynamic_batch=False))
    known = (*onnx.shape_inference.infer_shapes(proto).graph.value_info, *proto.graph.output)
    shapes = {value.name: [side.dim_value for side in value.type.tensor_type.shape.dim[1:]] for value in known}
    weights = {tensor.name: prod(tensor.dims) for tensor in proto.graph.initializer}
    times, rows = _milliseconds(proto, image, runs), []
    for node in proto.graph.node:
        held = [weights[name] for name in node.input if name in weights]
        if held and node.op_type in ('Conv', 'Gemm', 'MatMul'):
            shape = shapes[node.output[0]]  # (O, h, w) of a convolution, (O) or (places, O) of a linear layer
            count = held[0] * prod(shape[1:] if node.op_type == 'Conv' else shape[:-1])
            spent = times.pop(node.name, 0.0)
            rows.append((node.name, node.op_type, ' x '.join(map(str, shape)), sum(held), count, spent))
    return [*rows, ('all else', '', '', 0, 0, sum(times.values()))]


def _milliseconds(proto, image: Tensor, runs: int) -> dict[str, float]:
    """Median time of each node. An activation counts to its convolution."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    # The level above it rewrites layouts, and the layers' names go.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, f'{folder}/profile'
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=['CPUExecutionProvider'])
        for _ in range(runs):
            session.run(None, {proto.graph.input[0].name: image.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text(encoding='utf-8'))
    times = defaultdict(list)
    for event in events:
        if event['name'].endswith(_KERNEL):
            times[event['name'].removesuffix(_KERNEL)].append(event['dur'] / 1e3)
    return {name: median(each) for name, each in times.items()}


def latency(model: nn.Module, size: int | Sequence[int], seconds: float = 1.0) -> float:
    """Median milliseconds for one image of ``size`` pixels on the model's device, all threads."""
    image = _image(model, size)
    with torch.inference_mode():
        timer = Timer('model(image)', globals=dict(model=model, image=image), num_threads=torch.get_num_threads())
        return timer.blocked_autorange(min_run_time=seconds).median * 1e3
