"""An int8 file in other integer types: ``python -m research.integers CONFIG WEIGHTS INT8.onnx``.

Prints, for each kind, predictions unlike the float network's on the config's test set and the time of an image.
"""

from pathlib import Path

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    cli.add_config_arguments(parser)
    parser.add_argument('weights')
    parser.add_argument('file', type=Path)
    parser.add_argument(
        '--repeats', '--rounds', dest='rounds', type=cli.positive, default=60, metavar='N', help='turns of timing (60)'
    )
    return parser.parse_args()


def main():
    args = parse_args()
    config = cli.load_config(args.config, args.cfg_options)
    from research.integers import study

    print(study.table(config, args.weights, args.file, args.rounds))


if __name__ == '__main__':
    cli.run(main)
