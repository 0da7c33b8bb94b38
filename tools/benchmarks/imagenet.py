"""What 300 epochs of ImageNet cost, calculated from the bytes that each step moves; nothing is measured here.

Kernels of these networks wait for memory on a GPU, so that a step takes at least as long as its maps take to be
written and read. Counted are the maps in 2 bytes a value, each operator of its own: a convolution reads its input
and writes its output, batch normalization reads twice and writes once, forward, and reads four maps and writes one
backward, and so on. Weights, launches, the optimizer and the head are left out.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mobileone_ext.arch import ARCHS, stage_widths

VARIANTS = ('s0', 's1', 's2', 's3', 's4')
PHOTOS, EPOCHS = 1_281_167, 300
# Image sizes in pixels and the epoch from which each holds: configs/_base_/schedules/imagenet_300e.py.
STAGES = ((160, 0), (192, 37), (224, 112))
BYTES_A_VALUE = 2
CORES = 64  # of a machine with eight GPUs, for the hours that decoding takes
# Images a second that one core reads, decodes and crops for training at 160 and 224 px, measured on an Intel Xeon
# (Sapphire Rapids): docs/results/input_pipeline.md.
RATES = {'640 x 500': {160: 381, 224: 347}, '500 x 375': {160: 670, 224: 631}, '389 x 292': {160: 894, 224: 863}}


class Block(NamedTuple):
    """Values of a block's input and output for one image, and what it is made of."""

    read: float
    written: float
    convolutions: int
    skip: bool
    se: bool
    stem: bool


def blocks(arch: str, size: int) -> Iterator[Block]:
    """The blocks of a variant for images of ``size`` pixels."""
    table = ARCHS[arch]
    stem, *widths = stage_widths(table)
    pixels, channels = (size / 2) ** 2, stem
    yield Block(3 * size**2, stem * pixels, 2, False, False, True)  # one 3x3 and the scale branch
    for width, count, branches, with_se in zip(
        widths, table['num_blocks'], table['num_conv_branches'], table['num_se_blocks']
    ):
        for number in range(count):
            se, stride = number >= count - with_se, 2 if number == 0 else 1
            before, pixels = channels * pixels, pixels / stride**2
            yield Block(before, channels * pixels, branches + 1, stride == 1, se, False)
            yield Block(channels * pixels, width * pixels, branches, channels == width, se, False)
            channels = width


def by_one_convolution(block: Block) -> float:
    """Values that the fused network's step moves."""
    x, y, inner = block.read, block.written, not block.stem
    forward = x + y + 2 * y  # convolution, ReLU
    backward = 3 * y + x + y + (x + y if inner else 0)  # ReLU, gradients of weight and input
    # Squeeze-and-excitation: pooled, multiplied; and back.
    return forward + backward + (7 * y if block.se else 0)


def by_branches(block: Block) -> float:
    """Values that a step moves where each branch is a convolution and a batch normalization of its own."""
    x, y, inner = block.read, block.written, not block.stem
    norms = block.convolutions + block.skip
    forward = block.convolutions * (x + y) + norms * 3 * y + (norms - 1) * 3 * y + 2 * y
    backward = 3 * y + norms * 5 * y + block.convolutions * (x + y)
    if inner:
        backward += block.convolutions * (x + y) + (norms - 1) * 3 * x
    return forward + backward + (7 * y if block.se else 0)


def by_moments(block: Block) -> float:
    """Values that a step by moments moves, with kernels of its own for statistics (a read) and gradient."""
    return by_one_convolution(block) + (1 if block.stem else 4) * block.read


def by_fused_moments(block: Block) -> float:
    """The same with these kernels fused into their neighbors, which hold one of the two maps already."""
    return by_one_convolution(block) + (0 if block.stem else 2) * block.read


METHODS: dict[str, Callable[[Block], float]] = {
    'branches': by_branches,
    'moments': by_moments,
    'moments, fused kernels': by_fused_moments,
    'fused network': by_one_convolution,
}


def traffic(arch: str, method: str, size: int, batch: int) -> float:
    """Bytes that one training step moves."""
    return BYTES_A_VALUE * batch * sum(map(METHODS[method], blocks(arch, size)))


def shares() -> dict[int, float]:
    """The part of the epochs that each image size takes."""
    ends = [*(epoch for _, epoch in STAGES[1:]), EPOCHS]
    return {size: (end - begin) / EPOCHS for (size, begin), end in zip(STAGES, ends)}


def images_per_second(arch: str, method: str, size: int, bandwidth: float) -> float:
    """Of one GPU that moves ``bandwidth`` bytes a second."""
    return bandwidth / traffic(arch, method, size, 1)


def hours(rates: dict[int, float]) -> float:
    """Hours of all epochs for images a second by image size."""
    return sum(EPOCHS * share * PHOTOS / rates[size] for size, share in shares().items()) / 3600


def prepared(rates: dict[int, float], cores: int) -> float:
    """Hours in which ``cores`` prepare all epochs, one of them ``rates`` images a second; 192 px as 224."""
    return hours({size: cores * rates.get(size, rates[224]) for size, _ in STAGES})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--gpus', type=int, default=8, metavar='N', help='(8)')
    parser.add_argument('--batch-size', type=int, default=256, metavar='N', help='of each GPU (256)')
    parser.add_argument(
        '--bandwidth',
        type=float,
        default=0.8 * 3.35,
        metavar='TB/S',
        help="of each GPU's memory (2.68)",
    )


def run(args: argparse.Namespace) -> None:
    """Print the tables of docs/imagenet.md."""
    if not (args.gpus >= 1 and args.batch_size >= 1 and args.bandwidth > 0):
        raise ValueError('--gpus and --batch-size: at least 1; --bandwidth: above 0')
    print(as_markdown(args.gpus, args.batch_size, args.bandwidth * 1e12))


def as_markdown(gpus: int, batch: int, bandwidth: float) -> str:
    """A line a variant and method, then the cores that feed it; calculated."""
    lines = [
        f'Calculated: {gpus} GPUs, {batch} images each, 2-byte maps, {bandwidth / 1e12:.2f} TB/s.',
        '',
        f'| | | GB a step, 224 px | ms a step | images a second, 160 px | 224 px | hours of {EPOCHS} epochs |',
        '|---' * 7 + '|',
    ]
    sizes = [size for size, _ in STAGES]
    for arch in VARIANTS:
        for method in METHODS:
            moved = traffic(arch, method, sizes[-1], batch)
            rates = {size: gpus * images_per_second(arch, method, size, bandwidth) for size in sizes}
            lines.append(
                f'| {arch} | {method} | {moved / 1e9:.0f} | {moved / bandwidth * 1e3:.1f} | {rates[sizes[0]]:,.0f} '
                f'| {rates[sizes[-1]]:,.0f} | {hours(rates):.1f} |'
            )
    heads = [f'{photos}, {size} px' for photos, rates in RATES.items() for size in rates]
    head = f'| | | {" | ".join(heads)} |'
    lines += [
        '',
        'Cores that read, decode and crop for it, by size of the photos:',
        '',
        head,
        '|---' * (2 + len(heads)) + '|',
    ]
    for arch in VARIANTS:
        for method in ('branches', 'moments'):
            cells = [
                gpus * images_per_second(arch, method, size, bandwidth) / rate
                for rates in RATES.values()
                for size, rate in rates.items()
            ]
            lines.append(f'| {arch} | {method} | {" | ".join(f"{cell:,.0f}" for cell in cells)} |')
    fed = ', '.join(f'{prepared(rates, CORES):.1f} from {photos}' for photos, rates in RATES.items())
    lines += ['', f'Hours in which {CORES} cores prepare {EPOCHS} epochs: {fed}.']
    return '\n'.join(lines)
