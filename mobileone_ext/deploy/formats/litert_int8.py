"""What the converter leaves to be done in a LiteRT model of integers: a float input, and int8 for the classifier.

``tree`` is the model as LiteRT's own classes hold it, ``ModelT`` of ``schema_py_generated``.
"""

import numpy as np


def give_float_input(tree) -> None:
    """Put QUANTIZE before an input of int8, so that a float image goes in as in other files; in place."""
    from ai_edge_litert import schema_py_generated as schema

    graph = tree.subgraphs[0]
    source = graph.tensors[graph.inputs[0]]
    if source.type != schema.TensorType.INT8:
        return
    image = _add_tensor(tree, source.name, schema.TensorType.FLOAT32, source.shape, None)
    source.name = source.name + b'_int8'
    graph.operators.insert(0, _operator(tree, schema.BuiltinOperator.QUANTIZE, image, graph.inputs[0]))
    for entry in tree.signatureDefs[0].inputs:
        entry.tensorIndex = image
    graph.inputs = [image]


def store_classifier(tree, scales: np.ndarray) -> None:
    """Keep the classifier's float weights, which lie on the grid of ``scales`` (O,), as int8 behind DEQUANTIZE.

    The layer computes in float: LiteRT's integer kernels would return logits of 256 steps. In place.
    """
    from ai_edge_litert import schema_py_generated as schema

    graph = tree.subgraphs[0]
    index, layer = next(
        (index, operator)
        for index, operator in enumerate(graph.operators)
        if _kind(tree, operator) == schema.BuiltinOperator.FULLY_CONNECTED
    )
    weight = graph.tensors[layer.inputs[1]]
    if weight.type != schema.TensorType.FLOAT32:
        return
    data = np.asarray(tree.buffers[weight.buffer].data, np.uint8)
    values = np.frombuffer(data.tobytes(), np.float32).reshape(len(scales), -1)
    largest = np.iinfo(np.int8).max
    integers = np.round(values / scales[:, None]).clip(-largest, largest).astype(np.int8)
    grid = schema.QuantizationParametersT()
    grid.scale, grid.zeroPoint = scales.astype(np.float32), np.zeros(len(scales), np.int64)
    stored = _add_tensor(tree, weight.name + b'_int8', schema.TensorType.INT8, weight.shape, integers.view(np.uint8))
    graph.tensors[stored].quantization = grid
    tree.buffers[weight.buffer].data, weight.buffer = None, 0  # the empty one: it is computed now
    graph.operators.insert(index, _operator(tree, schema.BuiltinOperator.DEQUANTIZE, stored, layer.inputs[1]))


def _add_tensor(tree, name: bytes, kind: int, shape, data: np.ndarray | None) -> int:
    from ai_edge_litert import schema_py_generated as schema

    tensor, tensors = schema.TensorT(), tree.subgraphs[0].tensors
    tensor.name, tensor.type, tensor.shape, tensor.buffer = name, kind, shape, 0
    if data is not None:
        buffer = schema.BufferT()
        buffer.data, tensor.buffer = data.ravel(), len(tree.buffers)
        tree.buffers.append(buffer)
    tensors.append(tensor)
    return len(tensors) - 1


def _operator(tree, kind: int, source: int, target: int):
    """An operator of one input and one output."""
    from ai_edge_litert import schema_py_generated as schema

    code, operator = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = kind
    code.version = 5 if kind == schema.BuiltinOperator.DEQUANTIZE else 1  # 5: a scale for each channel
    operator.opcodeIndex, operator.inputs, operator.outputs = len(tree.operatorCodes), [source], [target]
    tree.operatorCodes.append(code)
    return operator


def _kind(tree, operator) -> int:
    code = tree.operatorCodes[operator.opcodeIndex]
    return max(code.builtinCode, code.deprecatedBuiltinCode)
