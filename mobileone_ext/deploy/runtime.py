"""Exported files, opened for use: ONNX (float or int8), TorchScript and OpenVINO behind one call."""

from pathlib import Path

import numpy as np


class Network:
    """A deployed network: call it with images (N, C, H, W) float32, get outputs (N, classes).

    Attributes:
        fixed_batch: it takes one image at a time.
        num_classes: None if the file does not say.
        metadata: what the file says about itself, see :func:`mobileone_ext.export.file_metadata`.
    """

    def __init__(self, call, fixed_batch: bool, num_classes: int | None, metadata: dict):
        self._call, self.fixed_batch, self.num_classes, self.metadata = call, fixed_batch, num_classes, metadata

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if self.fixed_batch and len(images) > 1:
            return np.concatenate([self._call(image[None]) for image in images])
        return self._call(images)


def open_network(path: str | Path, threads: int | None = None, batch: int | None = None) -> Network:
    """Open a file that :mod:`mobileone_ext.export` or the quantizer wrote, by its suffix.

    Args:
        threads: of the runtime; None takes its default.
        batch: the one number of images of every call, if known: ONNX and OpenVINO are faster so.

    Raises:
        OSError: if there is no such file.
        ValueError: for another suffix, or a file that the runtime refuses.
    """
    path = Path(path)
    openers = {'.onnx': _open_onnx, '.pt': _open_torchscript, '.xml': _open_openvino}
    if path.suffix not in openers:
        raise ValueError(f'{path}: cannot be run here; files of {", ".join(openers)} can')
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file')
    try:
        return openers[path.suffix](path, threads, batch)
    except Exception as error:
        raise ValueError(
            f'{path}: not a network that the runtime reads ({str(error).splitlines()[0][:200]})'
        ) from error


def _open_onnx(path: Path, threads: int | None, batch: int | None) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    if batch:
        options.add_free_dimension_override_by_name('batch', batch)
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    image = session.get_inputs()[0]
    return Network(
        lambda images: session.run(None, {image.name: images})[0],
        image.shape[0] == 1,
        session.get_outputs()[0].shape[-1],
        session.get_modelmeta().custom_metadata_map,
    )


def _open_torchscript(path: Path, threads: int | None, batch: int | None) -> Network:
    import json

    import torch

    extra = {'metadata.json': ''}
    module = torch.jit.load(str(path), _extra_files=extra)
    if threads:
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def call(images):
        return module(torch.from_numpy(images)).numpy()

    return Network(call, False, None, json.loads(extra['metadata.json'] or '{}'))


def _open_openvino(path: Path, threads: int | None, batch: int | None) -> Network:
    import openvino

    model = openvino.Core().read_model(path)
    fixed_batch = model.input(0).partial_shape[0].is_static
    if batch and not fixed_batch:
        model.reshape([batch, *list(model.input(0).partial_shape)[1:]])
    # The CPU plug-in computes in bfloat16 where the processor has it, unless told.
    settings = {'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'}
    if threads:
        settings['INFERENCE_NUM_THREADS'] = threads
    compiled = openvino.Core().compile_model(model, 'CPU', settings)
    metadata = dict(model.get_rt_info(['mobileone']).value) if model.has_rt_info(['mobileone']) else {}
    classes = model.output(0).partial_shape[1].get_length()
    return Network(lambda images: compiled(images)[0], fixed_batch, classes, metadata)
