"""Measure time and memory: ``benchmark.py infer|train|pipeline|loop|device|imagenet [options]``."""

from importlib import import_module

from mobileone_ext import cli

COMMANDS = {
    'infer': 'latency of deployed networks, against other mobile backbones',
    'train': 'time and memory of training steps, against mmpretrain and timm',
    'pipeline': 'images a second of reading, decoding and cropping, against mmpretrain and torchvision',
    'loop': 'what the loader adds to a training step of a config',
    'device': 'all that a GPU is asked, in ten minutes: kernels, tiles, a profile, steps',
    'imagenet': 'hours and cores of 300 epochs of ImageNet, calculated',
}


def main():
    parser = cli.Parser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, text in COMMANDS.items():
        module = import_module(f'benchmarks.{name}')
        subparser = commands.add_parser(name, help=text, description=module.__doc__)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    args = parser.parse_args()
    return args.run(args)


if __name__ == '__main__':
    cli.run(main)
