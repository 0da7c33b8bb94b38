"""What 300 epochs of ImageNet cost, calculated from the bytes that each step moves; nothing is measured here.

Kernels of these networks wait for memory on a GPU, so that a step takes at least as long as its maps take to be
written and read (traffic.py), in 2 bytes a value. Weights, launches, the optimizer and the head are left out.
"""

import argparse
from functools import cache

from mobileone_ext.text import markdown_table

from .traffic import blocks, network_bytes

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
METHODS = {
    'branches': 'branches',
    'moments': 'moments',
    'moments, fused kernels': 'moments in neighbors',
    'fused network': 'fused',
}


blocks_of = cache(blocks)


@cache
def bytes_of_an_image(arch: str, method: str, size: int) -> int:
    """Bytes that one image of ``size`` pixels moves in a training step."""
    return network_bytes(blocks_of(arch, size), 1, METHODS[method], BYTES_A_VALUE)


def shares() -> dict[int, float]:
    """The part of the epochs that each image size takes."""
    ends = [*(epoch for _, epoch in STAGES[1:]), EPOCHS]
    return {size: (end - begin) / EPOCHS for (size, begin), end in zip(STAGES, ends)}


def images_per_second(arch: str, method: str, size: int, bandwidth: float) -> float:
    """Of one GPU that moves ``bandwidth`` bytes a second."""
    return bandwidth / bytes_of_an_image(arch, method, size)


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
    ]
    steps, cores = [], []
    sizes = [size for size, _ in STAGES]
    for arch in VARIANTS:
        for method in METHODS:
            moved = batch * bytes_of_an_image(arch, method, sizes[-1])
            rates = {size: gpus * images_per_second(arch, method, size, bandwidth) for size in sizes}
            images = [f'{rates[size]:,.0f}' for size in (sizes[0], sizes[-1])]
            step = f'{moved / 1e9:.0f}', f'{moved / bandwidth * 1e3:.1f}'
            steps.append((arch, method, *step, *images, f'{hours(rates):.1f}'))
    for arch in VARIANTS:
        for method in ('branches', 'moments'):
            cells = [
                gpus * images_per_second(arch, method, size, bandwidth) / rate
                for rates in RATES.values()
                for size, rate in rates.items()
            ]
            cores.append((arch, method, *(f'{cell:,.0f}' for cell in cells)))
    images = 'images a second, 160 px', '224 px'
    photos = [f'{photos}, {size} px' for photos, rates in RATES.items() for size in rates]
    lines += [
        markdown_table(('', '', 'GB a step, 224 px', 'ms a step', *images, f'hours of {EPOCHS} epochs'), steps),
        '',
        'Cores that read, decode and crop for it, by size of the photos:',
        '',
        markdown_table(('', '', *photos), cores),
    ]
    fed = ', '.join(f'{prepared(rates, CORES):.1f} from {photos}' for photos, rates in RATES.items())
    lines += ['', f'Hours in which {CORES} cores prepare {EPOCHS} epochs: {fed}.']
    return '\n'.join(lines)
