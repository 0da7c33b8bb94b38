"""A quantized classifier as an ONNX file with QuantizeLinear / DequantizeLinear pairs.

Weights are stored as int8, biases as int32, activations are uint8: runtimes turn the pairs into integer kernels.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .calibrate import INPUT, POOLED, Int8
from .chain import layers_of


def insert_qdq(proto: onnx.ModelProto, int8: Int8) -> onnx.ModelProto:
    """The exported float graph of ``int8.model`` with quantization wherever ``int8`` has parameters of it.

    Raises:
        ValueError: if the graph is not the model's.
    """
    return _Writer(proto, int8).write()


class _Writer:
    def __init__(self, proto: onnx.ModelProto, int8: Int8):
        self.proto, self.int8 = proto, int8
        self.initializers = {item.name: item for item in proto.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.replaced: dict[str, str] = {}  # tensor -> its rounded self
        self.qparams_of: dict[str, str] = {}  # tensor -> name of its parameters

    def write(self) -> onnx.ModelProto:
        layers = layers_of(self.int8.model)
        by_weight, last = dict(zip(self._weight_names(layers), layers)), None
        for node in self.proto.graph.node:
            layer = by_weight.get(node.input[1]) if len(node.input) > 2 else None
            if layer is not None and last is None:
                self._round(node.input[0], INPUT)
            last = layer or last
            for index, name in enumerate(node.input):
                node.input[index] = self.replaced.get(name, name)
            if layer is not None and layer.name in self.int8.weight_scales:
                self._quantize_weights(node, layer.name)
            self.nodes.append(node)
            # Parameters belong to a layer's own output where an SE reads it, to its activation's and to the pooled map.
            if layer is not None and layer.has_se:
                self._round(node.output[0], f'{layer.name}.linear')
            elif node.op_type in ('Relu', 'GlobalAveragePool') and '/se/' not in node.name:
                self._round(node.output[0], last.name if node.op_type == 'Relu' else POOLED)
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = [item for name, item in self.initializers.items() if name in used]
        del self.proto.graph.initializer[:]
        self.proto.graph.initializer.extend(kept)
        del self.proto.graph.value_info[:]
        return self.proto

    def _weight_names(self, layers) -> list[str]:
        """Names of the layers' weights, in order: the graph has them in the order of the network."""
        chain = [
            node.input[1]
            for node in self.proto.graph.node
            if node.op_type == 'Gemm' or (node.op_type == 'Conv' and '.se.' not in node.input[1])
        ]
        if len(chain) != len(layers):
            raise ValueError(f'the graph has {len(chain)} layers, the network {len(layers)}')
        return chain

    def _round(self, tensor: str, name: str) -> None:
        if name not in self.int8.qparams:
            return
        qparams = self.int8.qparams[name]
        scale = self._constant(f'{tensor}_scale', np.float32(qparams.scale))
        zero_point = self._constant(f'{tensor}_zero_point', np.uint8(qparams.zero_point))
        self.nodes.append(helper.make_node('QuantizeLinear', [tensor, scale, zero_point], [f'{tensor}_q']))
        self.nodes.append(helper.make_node('DequantizeLinear', [f'{tensor}_q', scale, zero_point], [f'{tensor}_dq']))
        self.replaced[tensor], self.qparams_of[f'{tensor}_dq'] = f'{tensor}_dq', name

    def _quantize_weights(self, node: onnx.NodeProto, layer_name: str) -> None:
        weight = numpy_helper.to_array(self.initializers[node.input[1]])
        bias = numpy_helper.to_array(self.initializers[node.input[2]])
        scales = self.int8.weight_scales[layer_name].numpy()
        if (scales == scales[0]).all():
            scales = scales[0]
        # Flatten stands between the pooled map and the classifier.
        source = self.qparams_of.get(node.input[0], POOLED)
        bias_scales = np.float64(self.int8.qparams[source].scale) * scales
        shape = (-1, *[1] * (weight.ndim - 1)) if np.ndim(scales) else ()
        node.input[1] = self._dequantized(node.input[1], np.round(weight / scales.reshape(shape)), np.int8, scales)
        node.input[2] = self._dequantized(node.input[2], np.round(bias / bias_scales), np.int32, bias_scales)

    def _dequantized(self, name: str, integers: np.ndarray, dtype, scales: np.ndarray) -> str:
        assert np.abs(integers).max() <= np.iinfo(dtype).max, name  # the scales are chosen for that
        values = self._constant(f'{name}_q', integers.astype(dtype))
        scale = self._constant(f'{name}_scale', np.asarray(scales, np.float32))
        inputs = [values, scale]
        if dtype != np.int32:  # the standard says that these have none
            inputs.append(self._constant(f'{name}_zero_point', np.zeros(np.shape(scales), dtype)))
        axis = dict(axis=0) if np.ndim(scales) else {}
        self.nodes.append(helper.make_node('DequantizeLinear', inputs, [f'{name}_dq'], **axis))
        return f'{name}_dq'

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name
