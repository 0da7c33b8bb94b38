"""Post-training int8 of a fused MobileOne, without labels and without training.

chain.py         the classifier as a chain of linear layers, their channels brought to one range
rounding.py      weights to int8 steps, each rounding made up for by the weights still to come
ranges.py        what an activation's 256 steps span
calibrate.py     all of it in one pass over calibration images, and the result in simulated int8
photos.py        the photos for that, and which cannot calibrate, or hardly
prepare.py       what of it serves other quantizers
inside.py        the same for a backbone inside any network
qdq.py           the result as an ONNX file
qdq_torch.py     the result as a PyTorch network, for LiteRT and ExecuTorch
agreement.py     whether the file computes what was calibrated
quantize.py      what tools/quantize.py does with all that

Nothing heavy is imported here.
"""

from dataclasses import dataclass

WEIGHT_BITS = (7, 8)
RANGES = ('minmax', 'percentile', 'mse', 'entropy')  # how those of activations are chosen
PREROUND_STEPS = (127.0, 127.5)
FIRST_OPSET = 13  # that has a scale for each channel


@dataclass(frozen=True)
class Options:
    """What to do; each step can be left out.

    Attributes:
        per_channel: one weight scale for each output channel instead of one for the layer.
        equalize, balance, floor: see chain.py.
        absorb_bias: move what a depthwise channel always exceeds into the next layer's bias.
        correct_bias: fit each bias to the means of the float network.
        compensate: least squares and compensated rounding instead of rounding to nearest; fits the bias too.
        ranges: of activations, one of ``RANGES``.
        ridge: holds least squares to the given weights, see rounding.py.
        weight_bits: 8, or 7 for weights whose sums of products fit 16 bits, see calibrate.py.
        keep: names of layers that stay in float.
    """

    per_channel: bool = True
    equalize: bool = True
    balance: float = 0.5
    floor: float = 1.0
    absorb_bias: bool = False
    correct_bias: bool = True
    compensate: bool = True
    ranges: str = 'mse'
    ridge: float = 10.0
    weight_bits: int = 7
    keep: tuple[str, ...] = ()
