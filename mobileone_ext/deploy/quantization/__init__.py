"""Post-training int8 of a fused MobileOne, without labels and without training.

chain.py         the classifier as a chain of linear layers, in float and in simulated int8
equalization.py  channels brought to one range, the function unchanged
rounding.py      weights to int8 steps, each rounding made up for by the weights still to come
ranges.py        what an activation's 256 steps span
photos.py        which photos cannot calibrate, or hardly
calibrate.py     all of it in one pass over calibration images
qdq.py           the result as an ONNX file
qdq_torch.py     the result as a PyTorch network, for LiteRT and ExecuTorch

Nothing heavy is imported here.
"""

WEIGHT_BITS = (7, 8)
RANGES = ('minmax', 'percentile', 'mse', 'entropy')  # how those of activations are chosen
PREROUND_STEPS = (127.0, 127.5)
FIRST_OPSET = 13  # that has a scale for each channel
