"""Quantizers of others at more than their defaults: their own equalization, ranges, bias correction and rounding.

As in quantizers.py each takes a fused classifier, normalized photos, whether weights have a scale for each channel, and
a folder of its own. What is tried is a list of what each one's documentation offers for a network that loses by the
defaults; the best of them on the photos that measure flatters it.
"""

import copy
import functools
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mobileone_ext.deploy.formats.base import quiet
from mobileone_ext.deploy.quantization.chain import layers_of
from mobileone_ext.files import write_json
from mobileone_ext.metadata import IMAGENET_MEAN, IMAGENET_STD
from research.sessions import in_exact_integers

from .quantizers import BATCH, Predict, Quantizer, nncf_quantized, run_file, save_onnx, static_int8

ADAROUND_STEPS = 500  # for each layer; AIMET recommends 10,000
ADAROUND_BATCH = 4
TINY = 1e-8
MNN_CONFIG = dict(format='RGB', mean=IMAGENET_MEAN, normal=[1 / each for each in IMAGENET_STD], input_type='image')


def onnxruntime_options(method: str = 'MinMax', smooth: float | None = None, **extra):
    """``quantize_static`` with another way to ranges, ``smooth``: SmoothQuant with this alpha (by neural-compressor
    2.x, as onnxruntime does it), and ``extra`` options."""

    def build(model: nn.Module, photos: Tensor, per_channel: bool, folder: Path) -> Predict:
        from onnxruntime.quantization import CalibrationMethod

        options = dict(extra)
        if smooth is not None:
            import neural_compressor  # noqa: F401  onnxruntime would say that it fails, not that it is missing

            options.update(SmoothQuant=True, SmoothQuantAlpha=smooth)
        method_ = CalibrationMethod[method]
        content = static_int8(model, photos, per_channel, folder, calibrate_method=method_, extra_options=options)
        network = in_exact_integers(content)
        return lambda images: torch.from_numpy(network(images.numpy()))

    return build


def nncf_options(
    ranges: str | None = None, smooth: float | None = None, align: bool = False, fast: bool = True, mixed: bool = False
):
    """NNCF with ``ranges`` of activations by another estimator, ``smooth``: SmoothQuant of convolutions with this
    alpha, ``align``: channel alignment; slow bias correction unless ``fast``; ``mixed``: asymmetric activations."""

    def build(model: nn.Module, photos: Tensor, per_channel: bool, folder: Path) -> Predict:
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedSmoothQuantParameters
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        advanced = dict(disable_channel_alignment=not align)
        if ranges:
            advanced['activations_range_estimator_params'] = getattr(RangeEstimatorParametersSet, ranges)
        if smooth is not None:
            advanced['smooth_quant_alphas'] = AdvancedSmoothQuantParameters(convolution=smooth)
        preset = nncf.QuantizationPreset.MIXED if mixed else None
        return nncf_quantized(model, photos, per_channel, folder, advanced, fast_bias_correction=fast, preset=preset)

    return build


def without_tiny_weights(model: nn.Module) -> nn.Module:
    """A copy in which weights below ``TINY`` are 0. AIMET's equalization divides by a channel's largest weight unless
    that is 0; where only a bias of 0.02 is left of a channel, a largest weight of 1e-19 makes that bias 5e7."""
    model = copy.deepcopy(model)
    for layer in layers_of(model):
        weight = layer.linear.weight.data
        weight[weight.abs() < TINY] = 0
    return model


def aimet(equalize: bool = False, round_steps: int = 0, ranges: str = 'min_max', drop_tiny: bool = False):
    """AIMET's simulation: int8 weights, uint8 activations; cross-layer equalization, AdaRound with so many steps,
    ``drop_tiny``: see :func:`without_tiny_weights`."""

    def build(model: nn.Module, photos: Tensor, per_channel: bool, folder: Path) -> Predict:
        import aimet_onnx
        import onnx
        from aimet_onnx.common.defs import QuantScheme
        from aimet_onnx.common.quantsim_config.config_utils import get_path_for_target_config
        from aimet_onnx.cross_layer_equalization import equalize_model

        config = 'default_config_per_channel' if per_channel else 'default_config'

        logging.disable(logging.INFO)
        model = without_tiny_weights(model) if drop_tiny else model
        with quiet():
            network = onnx.load(save_onnx(model, photos, folder))
            if equalize:
                equalize_model(network)
            batches = [{'image': chunk.numpy()} for chunk in photos.split(BATCH)]
            sim = aimet_onnx.QuantizationSimModel(
                network,
                quant_scheme=getattr(QuantScheme, ranges),
                config_file=get_path_for_target_config(config),
                session_options_kwargs=dict(intra_op_num_threads=1),
            )
            if round_steps:
                few = [{'image': chunk.numpy()} for chunk in photos.split(ADAROUND_BATCH)]
                aimet_onnx.apply_adaround(sim, few, round_steps)
            sim.compute_encodings(batches)
        logging.disable(logging.NOTSET)
        return lambda images: torch.from_numpy(sim.session.run(None, {'image': images.numpy()})[0])

    return build


def mnn_offline(activations: str, weights: str = 'MAX_ABS'):
    """MNN's offline quantizer; its int8 file runs in MNN."""

    def build(model: nn.Module, photos: Tensor, per_channel: bool, folder: Path) -> Predict:
        import MNN  # noqa: F401

        source, out, config = folder / 'float.mnn', folder / 'int8.mnn', folder / 'config.json'
        write_pixels(photos, folder / 'photos')
        side = dict(width=photos.shape[3], height=photos.shape[2])
        methods = dict(feature_quantize_method=activations, weight_quantize_method=weights)
        files = dict(path=f'{folder}/photos/', used_sample_num=len(photos))
        write_json({**MNN_CONFIG, **side, **methods, **files}, config)
        # No file of this project's: MNN would pass on its digest.
        onnx_file = str(save_onnx(model, photos, folder))
        _mnn_tool('mnnconvert', '-f', 'ONNX', '--modelFile', onnx_file, '--MNNModel', str(source))
        _mnn_tool('mnnquant', str(source), str(out), str(config))
        return run_file(out)

    return build


def _mnn_tool(name: str, *arguments: str) -> None:
    """Run one of MNN's tools in a process of its own, which it ends where it fails."""
    # Not its command of that name, which reports to its makers and installs a package for it.
    code = f'import sys, MNN, _tools; _tools.{name}(sys.argv)'
    subprocess.run([sys.executable, '-c', code, *arguments], check=True, stdout=subprocess.DEVNULL)


def write_pixels(photos: Tensor, folder: Path) -> None:
    """Normalized photos (N, 3, H, W), with ImageNet's mean and deviation, as PNG files again."""
    from PIL import Image

    folder.mkdir()
    mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    for number, photo in enumerate(photos):
        pixels = (photo * std + mean).round().clamp(0, 255).permute(1, 2, 0).numpy().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f'{number:04d}.png')


_nncf = functools.partial(Quantizer, package='nncf', scales=('channel',))
_onnxruntime = functools.partial(Quantizer, package='onnxruntime', scales=('channel',))
_smooth = functools.partial(Quantizer, package='onnxruntime neural-compressor', scales=('channel',))
_aimet = functools.partial(Quantizer, package='aimet-onnx', scales=('channel',))
_mnn = functools.partial(Quantizer, package='MNN', scales=('channel',))
QUANTIZERS = {
    'onnxruntime: percentile': _onnxruntime(onnxruntime_options('Percentile')),
    'onnxruntime: entropy': _onnxruntime(onnxruntime_options('Entropy')),
    'onnxruntime: SmoothQuant 0.5': _smooth(onnxruntime_options(smooth=0.5)),
    'onnxruntime: SmoothQuant 0.5, percentile': _smooth(onnxruntime_options('Percentile', 0.5)),
    'NNCF: asymmetric activations': _nncf(nncf_options(mixed=True)),
    'NNCF: bias correction in full': _nncf(nncf_options(fast=False)),
    'NNCF: channel alignment': _nncf(nncf_options(align=True)),
    'NNCF: SmoothQuant 0.5': _nncf(nncf_options(smooth=0.5)),
    'NNCF: histogram ranges': _nncf(nncf_options('HISTOGRAM')),
    'NNCF: all of these': _nncf(nncf_options('HISTOGRAM', 0.5, align=True, fast=False, mixed=True)),
    'NNCF: all but histogram ranges': _nncf(nncf_options(None, 0.5, align=True, fast=False, mixed=True)),
    'AIMET': _aimet(aimet()),
    'AIMET: equalization': _aimet(aimet(True)),
    'AIMET: equalization, ranges by least noise': _aimet(aimet(True, ranges='post_training_tf_enhanced')),
    'AIMET: equalization, no tiny weights': _aimet(aimet(True, drop_tiny=True)),
    'AIMET: AdaRound': _aimet(aimet(round_steps=ADAROUND_STEPS)),
    'AIMET: equalization, no tiny weights, AdaRound': _aimet(aimet(True, ADAROUND_STEPS, drop_tiny=True)),
    'MNN: KL': _mnn(mnn_offline('KL')),
    'MNN: ADMM': _mnn(mnn_offline('ADMM', 'ADMM')),
    'MNN: EMA': _mnn(mnn_offline('EMA')),
}
