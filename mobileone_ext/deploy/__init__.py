"""From a trained network to a device: fusing, the proof, costs, exported files, int8."""

# Of exported files, where nothing else is asked for: pixels, and the ONNX operator set.
DEFAULT_SIZE, DEFAULT_OPSET = 224, 17
