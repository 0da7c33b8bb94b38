"""ONNX (float and int8) and onnxruntime's own form of it, ``*.ort``."""

from __future__ import annotations

import ast
import io
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import HEATMAP_NAME
from .base import Network, Request, in_rows, only

if TYPE_CHECKING:
    from torch import Tensor, nn

_PROGRAMS_OPSET = 18  # the lowest that torch's exporter of programs writes
_TYPES = {'tensor(float)': np.float32, 'tensor(float16)': np.float16}


def write(net: nn.Module, image: Tensor, path: Path, request: Request) -> None:
    from .modules import half_precision

    net = half_precision(net) if request.half else net
    proto = onnx_proto(net, image, request)
    (write_ort if request.format == 'ort' else write_onnx)(proto, path, request.metadata)


def onnx_proto(net: nn.Module, image: Tensor, request: Request | None = None):
    """``net`` as an ONNX model with one input and the output ``output``; image (N, C, H, W) is an example."""
    from .torchscript import has_tracer

    request = request or Request()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the exporter announces its successor
        proto = (_by_tracer if has_tracer() else by_program)(net, image, request)
    proto = with_heatmap(proto) if request.heatmap else proto
    return request.rewrite(proto) if request.rewrite else proto


def _by_tracer(net: nn.Module, image: Tensor, request: Request):
    import onnx
    import torch

    name, buffer = request.input_name, io.BytesIO()
    # GlobalAveragePool and Flatten as such, and opsets below 18, which int8 runtimes ask for.
    torch.onnx.export(
        net,
        (image,),
        buffer,
        input_names=[name],
        output_names=[*request.outputs],
        opset_version=request.opset,
        dynamo=False,
        dynamic_axes={each: {0: 'batch'} for each in (name, *request.outputs)} if request.dynamic_batch else None,
    )
    return _with_own_initializers(onnx.load_from_string(buffer.getvalue()))


def by_program(net: nn.Module, image: Tensor, request: Request):
    """The same graph by torch.export, which torch keeps: opset 18 and above, and those below that say the same of it.

    Raises:
        ValueError: for an opset in which one of its operators was another.
    """
    import onnx
    import torch
    from onnx.helper import make_node

    proto = torch.onnx.export(
        net,
        (image,),
        input_names=[request.input_name],
        output_names=[*request.outputs],
        opset_version=max(request.opset, _PROGRAMS_OPSET),
        dynamo=True,
        verbose=False,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim('batch')} if request.dynamic_batch else None,),
    ).model_proto
    graph = proto.graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pooled, state = set(), net.state_dict()
    for node in graph.node:
        said = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(said.get('pkg.torch.onnx.name_scopes', "['', '']"))
        node.name = f'/{scopes[-2].replace(".", "/")}/{node.name}'
        del node.metadata_props[:]  # lines of Python, with the folders that they are in
        if node.op_type == 'ReduceMean' and {axis % 4 for name in node.input[1:] for axis in constants[name]} == {2, 3}:
            node.CopyFrom(make_node('GlobalAveragePool', node.input[:1], node.output, node.name))
            pooled.update(node.output)
        elif node.op_type == 'Reshape' and node.input[0] in pooled and constants[node.input[1]].size == 2:
            node.CopyFrom(make_node('Flatten', node.input[:1], node.output, node.name, axis=1))
        bias = f'{node.input[1].removesuffix("weight")}bias' if node.op_type == 'Conv' else ''
        if bias in state and len(node.input) == 2:  # the exporter leaves out zeros
            graph.initializer.append(onnx.numpy_helper.from_array(state[bias].numpy(), bias))
            node.input.append(bias)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)
    (opset,) = proto.opset_import
    for kind in {node.op_type for node in graph.node}:
        known, asked = (onnx.defs.get_schema(kind, version).since_version for version in (opset.version, request.opset))
        if known != asked:
            raise ValueError(f'--opset {request.opset}: this torch writes {kind} of opset {known} and above alone')
    opset.version = request.opset
    return proto


def _with_own_initializers(proto):
    """``proto`` without Identity, as which the exporter stores all tensors but the first that are equal; in place."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in [node for node in proto.graph.node if node.op_type == 'Identity' and node.input[0] in stored]:
        copied = proto.graph.initializer.add()
        copied.CopyFrom(stored[node.input[0]])
        copied.name = node.output[0]
        proto.graph.node.remove(node)
    return proto


def with_heatmap(proto):
    """``proto`` with a second output, ``HEATMAP_NAME`` (N, classes, h, w): the class activation map of the logits.

    Its mean over the places, with the linear layer's bias, is the logit. In place.

    Raises:
        ValueError: unless average pooling and a linear layer follow the last map.
    """
    import onnx
    from onnx.helper import make_node, make_tensor, make_tensor_value_info

    graph = proto.graph
    made_by = {name: node for node in graph.node for name in node.output}
    linear = next((node for node in reversed(graph.node) if node.op_type == 'Gemm'), None)
    flat = made_by.get(linear.input[0]) if linear else None
    pool = made_by.get(flat.input[0]) if flat else None
    if pool is None or pool.op_type != 'GlobalAveragePool':
        raise ValueError('a heat map needs average pooling and a linear layer behind the last map')
    name, weight = pool.input[0], linear.input[1]  # (N, C, h, w), (classes, C)
    known = onnx.shape_inference.infer_shapes(proto).graph.value_info
    height, width = (side.dim_value for side in next(v for v in known if v.name == name).type.tensor_type.shape.dim[2:])
    shapes = dict(heatmap_columns=[0, 0, -1], heatmap_shape=[0, 0, height, width])
    graph.initializer.extend(make_tensor(key, onnx.TensorProto.INT64, [len(to)], to) for key, to in shapes.items())
    graph.node.extend(
        [
            make_node('Reshape', [name, 'heatmap_columns'], ['heatmap_places']),
            make_node('MatMul', [weight, 'heatmap_places'], ['heatmap_logits']),
            make_node('Reshape', ['heatmap_logits', 'heatmap_shape'], ['heatmap_inside']),
            make_node('Cast', ['heatmap_inside'], [HEATMAP_NAME], to=onnx.TensorProto.FLOAT),  # of a half file
        ]
    )
    batch, classes = graph.output[0].type.tensor_type.shape.dim
    sides = [batch.dim_param or batch.dim_value, classes.dim_value, height, width]
    graph.output.append(make_tensor_value_info(HEATMAP_NAME, onnx.TensorProto.FLOAT, sides))
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
    image, outputs = only(session.get_inputs()), [out for out in session.get_outputs() if out.name != HEATMAP_NAME]
    if image.type not in _TYPES:
        raise ValueError(f'its input is {image.type}; float images are needed')
    dtype = _TYPES[image.type]
    # A batch that was fixed for speed stands there as if the file said it.
    first = None if batch and image.shape[0] == batch else image.shape[0]
    (*shape, classes), names = outputs[0].shape, [output.name for output in outputs]
    classes = classes if isinstance(classes, int) and len(outputs) == len(shape) == 1 else None
    metadata = session.get_modelmeta().custom_metadata_map
    return Network(
        lambda images: in_rows(session.run(names, {image.name: images.astype(dtype, copy=False)})),
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
