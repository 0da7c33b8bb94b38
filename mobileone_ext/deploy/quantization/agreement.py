"""Does a written int8 file compute what was measured: on this processor, and on one that adds in 16 bits?"""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compare import check_finite
from .calibrate import Int8
from .chain import in_chunks

IMAGES = 50  # are enough: saturation changes the outputs of every image
# Kullback-Leibler divergence from the simulation. Values half-way between two steps fall to either side, which alone
# makes a third of what int8 differs from float by, and as much where ranges clip; saturation makes ten times as much.
LEAST_DIVERGENCE, TOLERATED = 1e-3, 2
SUMS_FIT = 'every pair of products fits 16 bits: the same on all processors'
SUMS_OVERFLOW = 'for processors that add in 32 bits (x86 with VNNI, Arm)'


@torch.no_grad()
def measure(
    model: nn.Module, int8: Int8, file: Callable[[Tensor], Tensor], images: Tensor, softmax: bool = False
) -> dict:
    """How far the file and a processor that saturates are from the simulation in exact integers.

    Args:
        model: the float network; file: the written one, run on this machine.
        images: normalized calibration images, of which some are taken.
        softmax: the file returns probabilities.

    Returns:
        ``num_images``; ``fits_16_bits``; ``int8``, ``file`` and ``saturating``: a dict each of ``flips`` and
        ``divergence``, the first from the float network, the others from the simulation.
    """
    images = images[:: max(1, len(images) // IMAGES)][:IMAGES]
    exact, outputs = in_chunks(int8, images), in_chunks(file, images)
    check_finite(outputs, 'the int8 file')
    saturating = exact
    if not int8.fits_16_bits:
        saturating = in_chunks(dataclasses.replace(int8, saturates=True), images)
    return dict(
        num_images=len(images),
        fits_16_bits=int8.fits_16_bits,
        int8=_apart(in_chunks(model, images).log_softmax(1), exact.log_softmax(1)),
        file=_apart(exact.log_softmax(1), outputs.log() if softmax else outputs.log_softmax(1)),
        saturating=_apart(exact.log_softmax(1), saturating.log_softmax(1)),
    )


def _apart(expected: Tensor, actual: Tensor) -> dict:
    """Flips and mean divergence of log-probabilities."""
    flips = (expected.argmax(1) != actual.argmax(1)).sum()
    actual = actual.clamp_min(-100)  # a probability that is 0 in float32
    divergence = F.kl_div(actual, expected, log_target=True, reduction='batchmean')
    return dict(flips=int(flips), divergence=float(divergence))


def sums(int8: Int8) -> str:
    """On which processors the file computes the same."""
    return SUMS_FIT if int8.fits_16_bits else SUMS_OVERFLOW


def differs(agreement: dict, name: str) -> bool:
    """Whether ``file`` or ``saturating`` of :func:`measure` is another network than the one simulated."""
    return not agreement[name]['divergence'] <= max(TOLERATED * agreement['int8']['divergence'], LEAST_DIVERGENCE)


def describe(agreement: dict) -> str:
    """Lines for the console."""

    def figures(name: str) -> str:
        flips, divergence = agreement[name]['flips'], agreement[name]['divergence']
        return f'{flips} of {agreement["num_images"]} predictions flip, divergence {divergence:.4f}'

    line = f'on this machine the file computes what was calibrated ({figures("file")})'
    if differs(agreement, 'file'):
        line = (
            f'WARNING: on this machine the file does not compute what was calibrated ({figures("file")}; '
            f'int8 alone: {agreement["int8"]["divergence"]:.4f})'
        )
    if agreement['fits_16_bits']:
        return f'{line}\n{SUMS_FIT}'
    verdict = 'it is another network' if differs(agreement, 'saturating') else 'it loses little here'
    return (
        f'{line}\n{SUMS_OVERFLOW}: on x86 processors without VNNI {verdict} ({figures("saturating")}); '
        '--weight-bits 7 is the same on all'
    )
