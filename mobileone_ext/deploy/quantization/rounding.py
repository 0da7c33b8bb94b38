"""Weights to int8 steps by closed formulas on the statistics of their inputs.

1. Least squares: weights that make the float network's outputs out of the inputs that the int8 network has.
2. Rounding column by column, each column's error made up for by the columns still to come (Frantar et al.
   2022, "GPTQ", arXiv 2210.17323, section 3; after Hassibi & Stork's optimal brain surgeon).
The bias that makes the means agree is "bias correction" (Nagel et al. 2019, arXiv 1906.04721, section 4.2).

Shapes: W weights (G, O, I), H second moments of the centered inputs (G, I, I), scales (G, O).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import Options

LEVELS = 127  # symmetric int8: -127 .. 127
# Steps that a bias may have: half of int32, so that the sum of products that it is added to fits as well.
BIAS_LEVELS = 2**30
DAMPING = 0.01  # of the mean diagonal, as in GPTQ
OUTLIER = 4  # times the median energy of a layer's samples; what has more counts no more than this
PAIR_LIMIT = (2**15 - 1) // 255  # 128: what two neighboring weights of one sign may be together, see calibrate.excess
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6)


class Moments(NamedTuple):
    """Of n weighted samples, in float64: ``mean_in`` (G, 1, I), ``mean_out`` (G, 1, O), ``inputs`` (G, I, I) and
    ``cross`` (G, I, O), the second moments of centered inputs with themselves and with the expected outputs."""

    mean_in: Tensor
    mean_out: Tensor
    inputs: Tensor
    cross: Tensor


def moments(inputs: Tensor, outputs: Tensor) -> Moments:
    """Moments of ``inputs`` (G, n, I) and the expected ``outputs`` (G, n, O), outliers held back."""
    inputs, outputs = inputs.double(), outputs.double()
    weights = sample_weights(outputs)
    mean_in, mean_out = ((weights * x).sum(1, keepdim=True) for x in (inputs, outputs))
    centered = inputs - mean_in
    transposed = (weights * centered).transpose(1, 2)
    return Moments(mean_in, mean_out, transposed @ centered, transposed @ (outputs - mean_out))


def sample_weights(outputs: Tensor) -> Tensor:
    """What each sample of ``outputs`` (G, n, O) counts, (1, n, 1), in all 1: less, the more its energy is an outlier's.

    In some images one corner overflows: in Apple's S0, a tenth of the photos, 0.2 % of the pixels hold 38 % of a
    layer's energy. Int8 clips them; fitted as they are, they would bend the weights for all other pixels.
    """
    energy = outputs.square().mean((0, 2))
    ratio = energy / (OUTLIER * energy.median()).clamp_min(1e-30)
    weights = 1 / ratio.clamp_min(1)
    return (weights / weights.sum())[None, :, None]


def fit(
    weight: Tensor, bias: Tensor, stats: Moments, input_scale: float, in_pairs: bool, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's weight (G, O, I) on int8 steps, the bias (G * O,) that belongs to it, and the scales (G, O).

    Args:
        stats: of the layer's rounded inputs, whose scale is ``input_scale``, and expected outputs.
        in_pairs: as in :func:`to_steps`.
    """
    fits_bias = options.correct_bias or options.compensate
    offsets = stats.mean_out.squeeze(1) if fits_bias else bias.double().view(len(weight), -1)
    clips = CLIPS if options.compensate else (1.0,)
    if options.compensate:
        weight = least_squares(weight, stats, options.ridge)
    scales = choose_scales(weight, stats.inputs, offsets, input_scale, options.per_channel, in_pairs, clips)
    if options.compensate:
        weight = round_with_compensation(weight, stats.inputs, scales, in_pairs)
    else:
        weight = to_steps(weight, scales, in_pairs)
    return weight, fitted_bias(weight, stats) if fits_bias else bias, scales


def damped(second_moments: Tensor, amount: float) -> Tensor:
    """``second_moments`` plus ``amount`` times its mean diagonal on the diagonal."""
    mean = second_moments.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    identity = torch.eye(second_moments.shape[-1], dtype=second_moments.dtype)
    return second_moments + amount * mean[:, None, None] * identity


def least_squares(weight: Tensor, stats: Moments, ridge: float) -> Tensor:
    """The weights nearest to the expected outputs, held to ``weight`` by ``ridge`` (of the mean input moment)."""
    residual = stats.cross - stats.inputs @ weight.transpose(1, 2)
    return weight + torch.linalg.solve(damped(stats.inputs, ridge), residual).transpose(1, 2)


def fitted_bias(weight: Tensor, stats: Moments) -> Tensor:
    """The bias (G * O,) that gives the outputs their expected mean."""
    return (stats.mean_out - stats.mean_in @ weight.transpose(1, 2)).flatten()


def neighbors_sum(weight: Tensor) -> Tensor:
    """The largest absolute sum of two neighboring weights of one sign, (..., O) for ``weight`` (..., O, I).

    All neighbors count, not only the pairs from 0 on: then padding before the first channel does no harm.
    """
    sums = [(signed[..., 1:] + signed[..., :-1]) for signed in (weight.clamp_min(0), -weight.clamp_max(0))]
    return torch.cat([*sums, weight.abs()], -1).amax(-1)


def to_steps(weight: Tensor, scales: Tensor, in_pairs: bool = False) -> Tensor:
    """``weight`` rounded to multiples of ``scales`` that int8 holds; in pairs, neighbors share ``PAIR_LIMIT``."""
    rounded, before = torch.empty_like(weight), None
    if not in_pairs:
        return (weight / scales[..., None]).round().clamp(-LEVELS, LEVELS) * scales[..., None]
    for column in range(weight.shape[2]):
        before = round_column(weight[:, :, column] / scales, before)
        rounded[:, :, column] = before * scales
    return rounded


def round_column(column: Tensor, before: Tensor | None = None) -> Tensor:
    """Integers for a column (G, O), each small enough for its neighbor in the column ``before`` if there is one."""
    low, high = torch.full_like(column, -LEVELS), torch.full_like(column, LEVELS)
    if before is not None:
        low, high = low.maximum(-PAIR_LIMIT - before.clamp_max(0)), high.minimum(PAIR_LIMIT - before.clamp_min(0))
    return column.round().clamp(low, high)


def choose_scales(
    weight: Tensor,
    second_moments: Tensor,
    offsets: Tensor,
    input_scale: float,
    per_channel: bool,
    in_pairs: bool = False,
    clips=CLIPS,
) -> Tensor:
    """The scales (G, O), out of some that clip the largest weights, whose rounding disturbs the outputs least.

    A bias is stored in steps of ``input_scale`` times the weights' scale, so where weights are next to nothing their
    scale is that of the bias.

    Args:
        offsets: (G, O), the biases or, where they are still to be fitted, the outputs' means: the two differ by no more
            than the sum of products.
        input_scale: of the inputs.
        in_pairs: as in :func:`to_steps`; what counts is then the largest sum of two neighbors too.
    """
    largest = weight.abs().amax(2) / LEVELS
    if in_pairs:
        largest = largest.maximum(neighbors_sum(weight) / PAIR_LIMIT)
    least = (offsets.abs() / (BIAS_LEVELS * input_scale)).clamp_min(1e-12)
    if not per_channel:
        largest, least = largest.max().expand_as(largest), least.max().expand_as(least)
    best_scales, best_error = None, None
    for clip in clips:
        scales = (largest * clip).maximum(least)
        change = to_steps(weight, scales, in_pairs) - weight
        error = ((change @ second_moments) * change).sum(2)
        if not per_channel:
            error = error.sum().expand_as(error)
        if best_error is None:
            best_scales, best_error = scales, error
        else:
            better = error < best_error
            best_scales = torch.where(better, scales, best_scales)
            best_error = torch.where(better, error, best_error)
    return best_scales


def round_with_compensation(weight: Tensor, second_moments: Tensor, scales: Tensor, in_pairs: bool = False) -> Tensor:
    """``weight`` in steps of ``scales`` as by :func:`to_steps`, its outputs' squared error kept small by GPTQ."""
    factor = torch.linalg.cholesky(damped(second_moments, DAMPING))
    upper = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    left, rounded, before = weight.clone(), torch.empty_like(weight), None
    for column in range(weight.shape[2]):
        integers = round_column(left[:, :, column] / scales, before)
        before = integers if in_pairs else None
        rounded[:, :, column] = integers * scales
        error = (left[:, :, column] - rounded[:, :, column]) / upper[:, None, column, column]
        left[:, :, column:] -= error[:, :, None] * upper[:, None, column, column:]
    return rounded
