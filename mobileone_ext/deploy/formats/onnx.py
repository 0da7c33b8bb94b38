"""ONNX (float and int8) and onnxruntime's own form of it, ``*.ort``."""

import io
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import OUTPUT_NAME
from .base import Network, Request, half_precision, only

_TYPES = {'tensor(float)': np.float32, 'tensor(float16)': np.float16}


def write(net: nn.Module, image: Tensor, path: Path, request: Request) -> None:
    net = half_precision(net) if request.half else net
    proto = onnx_proto(net, image, request)
    (write_ort if request.format == 'ort' else write_onnx)(proto, path, request.metadata)


def onnx_proto(net: nn.Module, image: Tensor, request: Request | None = None):
    """``net`` as an ONNX model with one input and the output ``output``; image (N, C, H, W) is an example."""
    import onnx

    request = request or Request()
    name, buffer = request.input_name, io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the exporter announces its successor
        # The TorchScript exporter: GlobalAveragePool and Flatten as such, and opsets below 18, which the newer
        # one cannot write and int8 runtimes ask for.
        torch.onnx.export(
            net,
            (image,),
            buffer,
            input_names=[name],
            output_names=[OUTPUT_NAME],
            opset_version=request.opset,
            dynamo=False,
            dynamic_axes={name: {0: 'batch'}, OUTPUT_NAME: {0: 'batch'}} if request.dynamic_batch else None,
        )
    proto = _with_own_initializers(onnx.load_from_string(buffer.getvalue()))
    return request.rewrite(proto) if request.rewrite else proto


def _with_own_initializers(proto):
    """``proto`` without Identity, as which the exporter stores all tensors but the first that are equal; in place."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in [node for node in proto.graph.node if node.op_type == 'Identity' and node.input[0] in stored]:
        copied = proto.graph.initializer.add()
        copied.CopyFrom(stored[node.input[0]])
        copied.name = node.output[0]
        proto.graph.node.remove(node)
    return proto


def write_onnx(proto, path: Path, metadata: dict[str, str]) -> None:
    """Check an ONNX model and save it with ``metadata``."""
    import onnx

    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def write_ort(proto, path: Path, metadata: dict[str, str]) -> None:
    """Save an ONNX model in onnxruntime's form, optimized for any processor."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, 'net.onnx')
        write_onnx(proto, source, metadata)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry('session.save_model_format', 'ORT')
        # The level above it rewrites layouts for the processor at hand.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        onnxruntime.InferenceSession(str(source), options, providers=['CPUExecutionProvider'])


def open_file(path: Path, threads: int | None, batch: int | None) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    if batch:
        options.add_free_dimension_override_by_name('batch', batch)
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    image, output = only(session.get_inputs()), session.get_outputs()[0]
    if image.type not in _TYPES:
        raise ValueError(f'its input is {image.type}; float images are needed')
    dtype = _TYPES[image.type]
    # A batch that was fixed for speed stands there as if the file said it.
    first = None if batch and image.shape[0] == batch else image.shape[0]
    classes = output.shape[-1] if isinstance(output.shape[-1], int) else None
    metadata = session.get_modelmeta().custom_metadata_map
    return Network(
        lambda images: session.run([output.name], {image.name: images.astype(dtype, copy=False)})[0],
        first == 1,
        classes,
        metadata,
        (first, *image.shape[1:]),
        metadata.get('precision') == 'int8' or _holds_int8(path),
    )


def _holds_int8(path: Path) -> bool:
    """Whether quantization operators are in the file; their names stand in it as plain text."""
    content = path.read_bytes()
    return b'QuantizeLinear' in content or b'QLinearConv' in content
