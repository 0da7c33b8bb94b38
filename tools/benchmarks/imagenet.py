"""What 300 epochs of ImageNet cost, calculated from the bytes that each step moves; nothing is measured here.

Kernels of these networks wait for memory on a GPU, so that a step takes at least as long as its maps take to be
written and read (traffic.py), in 2 bytes a value, as long as its products, and as long as the host needs to call its
operators. The optimizer, gradients between GPUs and the head are left out.
"""

import argparse
from collections.abc import Sequence
from functools import cache
from itertools import product
from statistics import median
from typing import NamedTuple

from mobileone_ext.text import markdown_table

from .traffic import blocks, forward_bytes, network_bytes, products

VARIANTS = ('s0', 's1', 's2', 's3', 's4')
PHOTOS, EPOCHS = 1_281_167, 300
# Image sizes in pixels and the epoch from which each holds: configs/_base_/schedules/imagenet_300e.py.
STAGES = ((160, 0), (192, 37), (224, 112))
BYTES_A_VALUE = 2
CORES = 64  # of a machine with eight GPUs, for the hours that decoding takes
# Images a second that one core reads, decodes and crops for training at 160 and 224 px, measured on an Intel Xeon
# (Sapphire Rapids): docs/results/input_pipeline.md.
RATES = {'640 x 500': {160: 381, 224: 347}, '500 x 375': {160: 670, 224: 631}, '389 x 292': {160: 894, 224: 863}}


# Ways to train, and what traffic.py calls them.
METHODS = {'branches': 'branches', 'moments': 'moments', 'fused network': 'fused'}
# Half of an H100's products a second in two bytes, dense.
PRODUCTS = 0.5 * 989e12 / 2
# Milliseconds of one core for forward and backward of blocks 16 channels wide, with two images of 64 px: little but the
# host's work. Moments with a block's algebra by torch's operators, as on a GPU. docs/results/host.csv, an AMD EPYC.
_OF_ONE_BRANCH = {'branches': 51.0, 'moments': 133.5, 'fused network': 15.9}
HOST = {
    's0': {'branches': 106.3, 'moments': 150.6, 'fused network': 17.0},
    **dict.fromkeys(('s1', 's2', 's3'), _OF_ONE_BRANCH),  # of as many blocks and branches
    's4': {'branches': 54.7, 'moments': 127.6, 'fused network': 24.1},
}
# Images a second of an RTX 4090 that only predicts (AMP, NCHW, batch 1,024, 224 px), branched and fused, as timm
# publishes them, and the bandwidth that they are held against: 80 % of its 1.008 TB/s.
PUBLISHED = {'s0': (3552, 18891), 's1': (4717, 11177), 's2': (3860, 8980), 's3': (3179, 7352), 's4': (2362, 5170)}
PUBLISHED_BANDWIDTH = 0.8 * 1.008e12


blocks_of = cache(blocks)  # each builds a network


def checked() -> dict[str, tuple[float, float]]:
    """Published images a second over calculated ones, of a branched and of a fused network."""
    return {
        arch: tuple(
            rate
            * sum(forward_bytes(block, 1, impl, BYTES_A_VALUE) for block in blocks_of(arch, 224))
            / PUBLISHED_BANDWIDTH
            for rate, impl in zip(rates, ('branches', 'fused'))
        )
        for arch, rates in PUBLISHED.items()
    }


@cache
def correction() -> float:
    """By how much networks of one convolution a block are slower than their traffic says: the median of five."""
    return median(1 / fused for _, fused in checked().values())


@cache
def bytes_of_an_image(arch: str, method: str, size: int) -> int:
    """Bytes that one image of ``size`` pixels moves in a training step."""
    return network_bytes(blocks_of(arch, size), 1, METHODS[method], BYTES_A_VALUE)


def shares() -> dict[int, float]:
    """The part of the epochs that each image size takes."""
    ends = [*(epoch for _, epoch in STAGES[1:]), EPOCHS]
    return {size: (end - begin) / EPOCHS for (size, begin), end in zip(STAGES, ends)}


class Step(NamedTuple):
    """Milliseconds of a GPU's memory, its products and the host's calls for one step, and of the step."""

    memory: float
    products: float
    host: float

    @property
    def total(self) -> float:
        """Products wait for memory and the GPU for the host, or the host for the GPU."""
        return max(self.memory + self.products, self.host)


def step(arch: str, method: str, size: int, batch: int, bandwidth: float) -> Step:
    """Of one GPU that moves ``bandwidth`` bytes a second."""
    factor = 1 if method == 'branches' else correction()
    multiplied = sum(products(block, batch, METHODS[method]) for block in blocks_of(arch, size))
    memory = factor * batch * bytes_of_an_image(arch, method, size) / bandwidth
    return Step(1e3 * memory, 1e3 * multiplied / PRODUCTS, HOST[arch][method])


def images_per_second(arch: str, method: str, size: int, batch: int, bandwidth: float) -> float:
    """Of one GPU that moves ``bandwidth`` bytes a second."""
    return 1e3 * batch / step(arch, method, size, batch, bandwidth).total


def hours(rates: dict[int, float]) -> float:
    """Hours of all epochs for images a second by image size."""
    return sum(EPOCHS * share * PHOTOS / rates[size] for size, share in shares().items()) / 3600


def prepared(rates: dict[int, float], cores: int) -> float:
    """Hours in which ``cores`` prepare all epochs, one of them ``rates`` images a second; 192 px as 224."""
    return hours({size: cores * rates.get(size, rates[224]) for size, _ in STAGES})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--gpus', type=int, default=8, metavar='N', help='(8)')
    parser.add_argument(
        '--batch-size',
        type=int,
        nargs='+',
        default=[32, 256],
        metavar='N',
        help="of each GPU (32, the recipe's, and 256)",
    )
    parser.add_argument(
        '--bandwidth',
        type=float,
        default=0.8 * 3.35,
        metavar='TB/S',
        help="of each GPU's memory (2.68)",
    )


def run(args: argparse.Namespace) -> None:
    """Print the tables behind docs/imagenet.md."""
    if not (args.gpus >= 1 and min(args.batch_size) >= 1 and args.bandwidth > 0):
        raise ValueError('--gpus and --batch-size: at least 1; --bandwidth: above 0')
    print(as_markdown(args.gpus, args.batch_size, args.bandwidth * 1e12))


def as_markdown(gpus: int, batches: Sequence[int], bandwidth: float) -> str:
    """Steps of each batch size, the cores that feed the last of them, and the check; calculated."""
    sizes = [size for size, _ in STAGES]
    lines = []
    for batch in batches:
        rows = []
        for arch, method in product(VARIANTS, METHODS):
            one = step(arch, method, sizes[-1], batch, bandwidth)
            rates = {size: gpus * images_per_second(arch, method, size, batch, bandwidth) for size in sizes}
            times = f'{one.memory:.1f}', f'{one.products:.1f}', f'{one.host:.0f}', f'{one.total:.1f}'
            took = hours(rates)
            rows.append((arch, method, *times, f'{rates[sizes[-1]]:,.0f}', f'{took:.1f}', f'{gpus * took:.0f}'))
        times = 'memory, ms', 'products, ms', 'host, ms', 'step, ms'
        columns = '', '', *times, 'images a second', f'hours of {EPOCHS} epochs', 'on one GPU'
        head = (
            f'Calculated: {gpus} GPUs, {batch} images each, {sizes[-1]} px, 2-byte maps, {bandwidth / 1e12:.2f} TB/s.'
        )
        lines += [head, '', markdown_table(columns, rows), '']
    cores = []
    for arch, method in product(VARIANTS, ('branches', 'moments')):
        cells = [
            gpus * images_per_second(arch, method, size, batches[-1], bandwidth) / rate
            for rates in RATES.values()
            for size, rate in rates.items()
        ]
        cores.append((arch, method, *(f'{cell:,.0f}' for cell in cells)))
    photos = [f'{photos}, {size} px' for photos, rates in RATES.items() for size in rates]
    fed = ', '.join(f'{prepared(rates, CORES):.1f} from {photos}' for photos, rates in RATES.items())
    check = [(arch, *(f'{share:.2f}' for share in shares)) for arch, shares in checked().items()]
    lines += [
        f'Cores that read, decode and crop for {batches[-1]} images on each GPU, by size of the photos:',
        '',
        markdown_table(('', '', *photos), cores),
        '',
        f'Hours in which {CORES} cores prepare {EPOCHS} epochs: {fed}.',
        '',
        'Published images a second over calculated ones, forward only, RTX 4090:',
        '',
        markdown_table(('', 'branched', 'fused'), check),
    ]
    return '\n'.join(lines)
