"""Settings of int8, chosen without labels: ``python -m research.int8.settings CONFIG WEIGHTS OWN OUTSIDE SETTING ...``.

Calibrated on photos of half of OWN's classes, and of OUTSIDE, the simulated int8 network is measured on photos of the
other half: predictions unlike the float network's, and the Kullback-Leibler divergence from it. Each SETTING is the
default but for the values that it names: ``floor=0.5``, ``balance=0.35,ridge=3``.
"""

from dataclasses import fields, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileone_ext import cli
from mobileone_ext.text import markdown_table

if TYPE_CHECKING:
    from mobileone_ext.deploy.quantization import Options

CALIBRATIONS = ('half', 200), ('half', 32), ('outside', 100)
SEEDS = (10, 11)
HELD_OUT = 400


def parse_args():
    parser = cli.Parser(description=__doc__)
    cli.add_config_arguments(parser)
    parser.add_argument('weights')
    parser.add_argument('own', type=Path, help='training photos in class folders')
    parser.add_argument('outside', type=Path, help='photos of something else')
    parser.add_argument('settings', nargs='+', metavar='SETTING')
    return parser.parse_args()


def parse_setting(text: str) -> 'Options':
    """The default but for ``text``: ``balance=0.35,ridge=3``.

    Raises:
        ValueError: for what is no option with a number, or a number that it does not take.
    """
    from mobileone_ext.deploy.quantization import Options

    numbers = {field.name: type(field.default) for field in fields(Options) if type(field.default) in (int, float)}
    values = {}
    for part in text.split(','):
        name, _, value = part.partition('=')
        try:
            values[name] = numbers[name](value)
        except (KeyError, ValueError) as error:
            raise ValueError(f'{part!r}: a setting is NAME=NUMBER, of {", ".join(numbers)}') from error
    return replace(Options(), **values)


@torch.no_grad()
def measure(model: nn.Module, int8, images: Tensor) -> tuple[int, float]:
    """Flips among ``images``, and the mean divergence from ``model``."""
    from mobileone_ext.deploy.quantization.chain import in_chunks

    expected, result = (in_chunks(net, images).log_softmax(1) for net in (model, int8))
    divergence = F.kl_div(result, expected, log_target=True, reduction='batchmean')
    return int((result.argmax(1) != expected.argmax(1)).sum()), float(divergence)


def main():
    args = parse_args()
    settings = [parse_setting(text) for text in args.settings]
    config = cli.load_config(args.config, args.cfg_options)
    from mobileone_ext.deploy.export import load_fused
    from mobileone_ext.deploy.quantization.calibrate import quantize
    from research.int8.study import Calibration, calibration_images, draw

    model = load_fused(config, args.weights)

    def images(*calibration) -> Tensor:
        return calibration_images(config, draw(Calibration(*calibration), args.own, args.outside, Path()))

    held_out = images('other half', HELD_OUT)
    rows = []
    for source, count in CALIBRATIONS:
        calibrations = [images(source, count, seed) for seed in SEEDS]
        for text, options in zip(args.settings, settings):
            result = [measure(model, quantize(model, photos, options), held_out) for photos in calibrations]
            flips, divergences = zip(*result)
            share = 100 * mean(flips) / len(held_out)
            each = ', '.join(f'{value:.3g}' for value in divergences)
            rows.append((text, f'{source}, {count}', f'{share:.1f} %', f'{mean(divergences):.3g}', each))
            print(*rows[-1], sep='; ', flush=True)
    print(markdown_table(('setting', 'calibration', 'flips', 'divergence, mean', 'each'), rows))


if __name__ == '__main__':
    cli.run(main)
