"""LiteRT (TensorFlow Lite): ``*.tflite``, images in the layout N, H, W, C, one at a time."""

from __future__ import annotations

import io
import json
import logging
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import OUTPUT_NAME, litert_int8
from .base import Network, Request, only, quiet
from .litert_metadata import LABELS_FILE, METADATA_FILE, associated_files, model_metadata

if TYPE_CHECKING:
    from torch import Tensor, nn

_ENTRY = 'mobileone'  # of the model's metadata: a JSON object


def write(net: nn.Module, image: Tensor, path: Path, request: Request) -> None:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    with quiet():
        import litert_torch
    from .modules import ChannelsLast

    image = image[:1].permute(0, 2, 3, 1).contiguous()
    with quiet():
        quantized = _pairs_to_integers() if request.int8 else None
        model = litert_torch.convert(ChannelsLast(net).eval(), (image,), quant_config=quantized).model_content()
    if request.half:
        model = _half_weights(model)
    path.write_bytes(_with_metadata(model, request))


def _pairs_to_integers():
    """What tells the converter to look for pairs; the quantizer itself is not run."""
    from litert_torch.quantize import pt2e_quantizer, quant_config

    config = pt2e_quantizer.get_symmetric_quantization_config()
    return quant_config.QuantConfig(pt2e_quantizer.PT2EQuantizer().set_global(config))


def _half_weights(model: bytes) -> bytes:
    """The model with its weights in float16: GPUs compute in that, processors take them back to float32."""
    from ai_edge_quantizer import qtyping, quantizer

    logging.getLogger().setLevel(logging.WARNING)
    with quiet(), redirect_stdout(io.StringIO()):
        casting = quantizer.Quantizer(model)
        casting.update_quantization_recipe(
            regex='.*',
            operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
            op_config=qtyping.OpQuantizationConfig(
                weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
                compute_precision=qtyping.ComputePrecision.FLOAT,
            ),
            algorithm_key='float_casting',
        )
        return bytes(casting.quantize().quantized_model)


def _with_metadata(model: bytes, request: Request) -> bytes:
    """The model with names, with what ``request`` says of it, and with the files of LiteRT's metadata behind it."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    for buffer in tree.buffers:  # the quantizer leaves weights behind the flatbuffer, which packing would lose
        if buffer.offset > 1:
            buffer.data = np.frombuffer(model, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    if request.int8:
        litert_int8.give_float_input(tree)
        if request.classifier_scales is not None:
            litert_int8.store_classifier(tree, request.classifier_scales.numpy())
    graph, signature = tree.subgraphs[0], tree.signatureDefs[0]
    for maps, indices, name in (
        (signature.inputs, graph.inputs, request.input_name),
        (signature.outputs, graph.outputs, OUTPUT_NAME),
    ):
        maps[0].name = graph.tensors[indices[0]].name = name.encode()
    contents = {_ENTRY: json.dumps(request.metadata).encode()}
    contents['TFLITE_METADATA'] = model_metadata(request)
    tree.metadata = tree.metadata or []
    for name, content in contents.items():
        entry, buffer = schema.MetadataT(), schema.BufferT()
        entry.name, entry.buffer = name.encode(), len(tree.buffers)
        buffer.data = np.frombuffer(content, np.uint8)
        tree.metadata.append(entry)
        tree.buffers.append(buffer)
    builder = flatbuffers.Builder(len(model) + 2**20)
    builder.Finish(tree.Pack(builder), b'TFL3')
    return associated_files(bytes(builder.Output()), request)


def read_metadata(model: bytes) -> dict[str, str]:
    """What :func:`write` put into the file; empty for a file of another tool."""
    from ai_edge_litert import schema_py_generated as schema

    root = schema.Model.GetRootAs(model, 0)
    for index in range(root.MetadataLength()):
        entry = root.Metadata(index)
        if entry.Name() == _ENTRY.encode():
            return json.loads(root.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
    return {}


def open_file(path: Path, threads: int | None, batch: int | None) -> Network:
    with quiet():
        from ai_edge_litert.interpreter import Interpreter

    with quiet():
        interpreter = Interpreter(str(path), num_threads=threads)
        interpreter.allocate_tensors()
    image, output = only(interpreter.get_input_details()), interpreter.get_output_details()[0]

    def call(images: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(image['index'], _to_type(images, image))
        interpreter.invoke()
        return _to_float(interpreter.get_tensor(output['index']), output)

    int8 = any(tensor['dtype'] in (np.int8, np.uint8) for tensor in interpreter.get_tensor_details())
    metadata = read_metadata(path.read_bytes())
    return Network(call, True, int(output['shape'][-1]), metadata, tuple(map(int, image['shape'])), int8)


def _to_type(values: np.ndarray, tensor: dict) -> np.ndarray:
    """Floats as the tensor holds them: as they are, or as integers by its scale and zero point."""
    dtype, (scale, zero) = tensor['dtype'], tensor['quantization']
    if np.issubdtype(dtype, np.floating):
        return values.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    return np.clip(np.round(values / (scale or 1)) + zero, limits.min, limits.max).astype(dtype)


def _to_float(values: np.ndarray, tensor: dict) -> np.ndarray:
    scale, zero = tensor['quantization']
    return (values.astype(np.float32) - zero) * scale if scale else values


__all__ = ['LABELS_FILE', 'METADATA_FILE', 'open_file', 'read_metadata', 'write']
