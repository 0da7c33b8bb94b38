"""Products of uint8 and int8 that are added in pairs in 16 bits, as x86 processors without VNNI do it.

``pmaddubsw`` adds two neighboring products and saturates: 255 * 127 + 255 * 127 = 64,770 becomes 32,767. onnxruntime
and OpenVINO use it (AVX2, AVX-512 without VNNI) in dense layers; in depthwise ones both add in 32 bits. Neighbors are
those of the layer's reduction in NHWC order: (0, 1), (2, 3) .. of kernel row, column, channel in onnxruntime; of each
kernel position's channels in OpenVINO, which is the same for a 1x1 kernel and for an even number of channels.

Legend: P pixels, O outputs, I inputs of one output in NHWC order.
"""

import torch
from torch import Tensor

LOWEST, HIGHEST = -(2**15), 2**15 - 1
PAIR_LIMIT = HIGHEST // 255  # 128: what two neighboring weights of one sign may be together
CHUNK = 512  # pairs at a time


def neighbors_sum(weight: Tensor) -> Tensor:
    """The largest absolute sum of two neighboring weights of one sign, (..., O) for ``weight`` (..., O, I).

    All neighbors count, not only the pairs from 0 on: then padding before the first channel does no harm.
    """
    sums = [(signed[..., 1:] + signed[..., :-1]) for signed in (weight.clamp_min(0), -weight.clamp_max(0))]
    return torch.cat([*sums, weight.abs()], -1).amax(-1)


def excess(x: Tensor, weight: Tensor) -> Tensor:
    """What saturation takes away from ``x @ weight.T``, (P, O).

    Args:
        x: integers 0 .. 255 (P, I); weight: integers -128 .. 127 (O, I); both as floats.
    """
    if x.shape[1] % 2:
        x, weight = (torch.nn.functional.pad(tensor, (0, 1)) for tensor in (x, weight))
    lost = x.new_zeros(len(x), len(weight))
    # Few pairs can saturate: those alone are multiplied out.
    large = 255 * weight.unflatten(1, (-1, 2))
    outputs, pairs = ((large.clamp_min(0).sum(2) > HIGHEST) | (large.clamp_max(0).sum(2) < LOWEST)).nonzero().T
    for output, pair in zip(outputs.split(CHUNK), pairs.split(CHUNK)):
        first, second = 2 * pair, 2 * pair + 1
        total = x[:, first] * weight[output, first] + x[:, second] * weight[output, second]
        lost.index_add_(1, output, total - total.clamp(LOWEST, HIGHEST))
    return lost
