"""Quantizers of others with their own defaults, and simulations that tell their errors apart.

Each takes a fused classifier, normalized photos (N, C, H, W), whether weights have a scale for each channel, and a
folder of its own; and returns the quantized network: logits (n, classes) for normalized images (n, C, H, W).
"""

import copy
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mobileone_ext.deploy.export import DeployNet
from mobileone_ext.deploy.formats import executorch, litert
from mobileone_ext.deploy.formats.base import Request, quiet
from mobileone_ext.deploy.formats.onnx import onnx_proto
from mobileone_ext.deploy.quantization import calibrate
from mobileone_ext.deploy.quantization.chain import Layer, layers_of
from mobileone_ext.deploy.runtime import open_network
from research.sessions import in_exact_integers

Predict = Callable[[Tensor], Tensor]
BATCH = 10


def run_file(path: Path) -> Predict:
    """A file of any format, in its own runtime."""
    network = open_network(path, threads=1)
    return lambda images: torch.from_numpy(network(images.numpy()).copy())


def save_onnx(model: nn.Module, photos: Tensor, folder: Path) -> Path:
    """The network as ``float.onnx`` in ``folder``, for any number of images."""
    import onnx

    path = folder / 'float.onnx'
    onnx.save(onnx_proto(DeployNet(model), photos[:2]), path)
    return path


def onnxruntime_static(model: nn.Module, photos: Tensor, per_channel: bool, folder: Path) -> Predict:
    """Min-max, int8 activations and weights, QDQ; run in exact integers on any processor."""
    network = in_exact_integers(static_int8(model, photos, per_channel, folder))
    return lambda images: torch.from_numpy(network(images.numpy()))


def static_int8(model: nn.Module, photos: Tensor, per_channel: bool, folder: Path, **options) -> bytes:
    """What ``quantize_static`` makes with these options."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.chunks = iter(photos.split(BATCH))

        def get_next(self):
            chunk = next(self.chunks, None)
            return None if chunk is None else {'image': chunk.numpy()}

        def __deepcopy__(self, memo):  # SmoothQuant's; iterators of tensors cannot be copied
            return Reader()

    logging.getLogger().setLevel(logging.ERROR)
    source, out = save_onnx(model, photos, folder), folder / 'int8.onnx'
    quantize_static(str(source), out, Reader(), per_channel=per_channel, **options)
    return out.read_bytes()


def openvino_nncf(model: nn.Module, photos: Tensor, per_channel: bool, folder: Path) -> Predict:
    """Symmetric activations, those of depthwise layers by channel; fast bias correction. Exact with VNNI alone."""
    return nncf_quantized(model, photos, per_channel, folder, {})


def nncf_quantized(
    model: nn.Module, photos: Tensor, per_channel: bool, folder: Path, advanced: dict, **options
) -> Predict:
    """The network as NNCF makes it with ``advanced`` parameters and other ``options``; runs in OpenVINO."""
    import nncf
    import openvino
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

    nncf.set_log_level(logging.ERROR)
    weights = QuantizationParameters() if per_channel else QuantizationParameters(per_channel=False)
    with quiet():
        quantized = nncf.quantize(
            openvino.convert_model(save_onnx(model, photos, folder)),
            nncf.Dataset([photo[None].numpy() for photo in photos]),
            subset_size=len(photos),
            advanced_parameters=AdvancedQuantizationParameters(weights_quantization_params=weights, **advanced),
            **options,
        )
    openvino.save_model(quantized, folder / 'int8.xml', compress_to_fp16=False)
    return run_file(folder / 'int8.xml')


def _pt2e(model: nn.Module, photos: Tensor, quantizer, batch: int | None):
    """The program with quantization in it; ``batch`` images at a time, or any number."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    shapes = None if batch else {'image': {0: torch.export.Dim('batch')}}
    program = torch.export.export(DeployNet(model), (photos[: batch or 2],), dynamic_shapes=shapes)
    prepared = prepare_pt2e(program.module(), quantizer)
    for chunk in photos.split(batch or BATCH):
        prepared(chunk)
    return convert_pt2e(prepared)


def torchao_x86(model: nn.Module, photos: Tensor, per_channel: bool, folder: Path) -> Predict:
    """PT2E with the quantizer for x86: uint8 activations by histogram; computed in float on the grids."""
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    return _pt2e(model, photos, quantizer, None)


def executorch_xnnpack(model: nn.Module, photos: Tensor, per_channel: bool, folder: Path) -> Predict:
    """PT2E with XNNPACK's quantizer: int8 activations by histogram; the file runs in ExecuTorch."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=per_channel))
    executorch.write(_pt2e(model, photos, quantizer, 1), photos[:1], folder / 'int8.pte', Request('executorch'))
    return run_file(folder / 'int8.pte')


def litert_ai_edge(model: nn.Module, photos: Tensor, per_channel: bool, folder: Path) -> Predict:
    """ai-edge-quantizer's ``static_wi8_ai8``: min-max, int8 activations; the file runs in LiteRT."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    from ai_edge_quantizer import qtyping, quantizer, recipe

    source, out = folder / 'float.tflite', folder / 'int8.tflite'
    litert.write(DeployNet(model), photos[:1], source, Request('litert', photos.shape[-1]))
    rules = copy.deepcopy(recipe.static_wi8_ai8())
    if not per_channel:
        for rule in rules:
            rule['op_config']['weight_tensor_config']['granularity'] = qtyping.QuantGranularity.TENSORWISE
    with quiet():
        quantizing = quantizer.Quantizer(str(source), rules)
        name = quantizing_signature(source)
        samples = [{name[1]: photo[None].permute(0, 2, 3, 1).contiguous().numpy()} for photo in photos]
        ranges = quantizing.calibrate({name[0]: samples}, num_threads=1)
        out.write_bytes(bytes(quantizing.quantize(ranges).quantized_model))
    return run_file(out)


def quantizing_signature(path: Path) -> tuple[str, str]:
    """Names of a LiteRT file's signature and of its input."""
    from ai_edge_litert.interpreter import Interpreter

    ((name, signature),) = Interpreter(str(path)).get_signature_list().items()
    return name, signature['inputs'][0]


@torch.no_grad()
def coreml_weights(model: nn.Module, photos: Tensor, per_channel: bool, folder: Path) -> Predict:
    """CoreML tools' ``linear_quantize_weights``, symmetric: weights rounded to 127 steps, activations in float."""
    rounded = copy.deepcopy(model)
    round_weights(layers_of(rounded), per_channel)
    return DeployNet(rounded)


@torch.no_grad()
def round_weights(layers: Iterable[Layer], per_channel: bool) -> None:
    """Symmetric int8 weights, in place: 127 steps to the largest of the channel or of the layer."""
    for layer in layers:
        weight = layer.linear.weight
        largest = weight.abs().flatten(1).amax(1) if per_channel else weight.abs().max().expand(len(weight))
        scale = (largest / 127).clamp_min(1e-12).reshape(-1, *[1] * (weight.dim() - 1))
        weight.copy_((weight / scale).round() * scale)


def activations_alone(ranges: str) -> Callable[[nn.Module, Tensor, bool, Path], Predict]:
    """A simulation: weights stay in float, activations are uint8 with ``ranges``."""

    def build(model: nn.Module, photos: Tensor, per_channel: bool, folder: Path) -> Predict:
        plain = dict(equalize=False, compensate=False, correct_bias=False)
        qparams = calibrate.quantize(model, photos, calibrate.Options(ranges=ranges, **plain)).qparams
        return calibrate.Int8(copy.deepcopy(model), qparams=qparams)

    return build


class Quantizer(NamedTuple):
    """Attributes: ``build``, see the head of this file; ``package``: what pip installs; ``scales``: of weights;
    ``steps``: that it takes to the largest one, for --preround-steps."""

    build: Callable[[nn.Module, Tensor, bool, Path], Predict]
    package: str
    scales: tuple[str, ...] = ('channel', 'tensor')
    steps: float = 127


QUANTIZERS = {
    'onnxruntime quantize_static': Quantizer(onnxruntime_static, 'onnxruntime'),
    'LiteRT ai-edge-quantizer': Quantizer(litert_ai_edge, 'ai-edge-quantizer litert-torch'),
    'ExecuTorch PT2E, XNNPACK': Quantizer(executorch_xnnpack, 'executorch'),
    'OpenVINO NNCF': Quantizer(openvino_nncf, 'nncf'),
    'CoreML weights (simulated)': Quantizer(coreml_weights, 'torch'),
    'torchao PT2E, x86': Quantizer(torchao_x86, 'torchao', ('channel',), 127.5),
    'min-max activations alone (simulated)': Quantizer(activations_alone('minmax'), 'torch', ('none',)),
    'least-squares activations alone (simulated)': Quantizer(activations_alone('mse'), 'torch', ('none',)),
}
