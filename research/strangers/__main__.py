"""Photos of classes that were left out, refused or not: ``python -m research.strangers PHOTOS OUT --weights FILE``.

PHOTOS are class folders; OUT gets rows.csv and a folder for each seed. Finished seeds are kept.
"""

from pathlib import Path

from mobileone_ext import cli
from research import tuning


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument('photos', type=Path)
    tuning.add_arguments(parser, seeds=[0, 1, 2], size=96, epochs=8)
    parser.add_argument('--precision', type=cli.fraction, default=0.95)
    return parser.parse_args()


def main():
    args = parse_args()
    from research.strangers import study

    tuning.run_all(study, args, [args.photos], args.precision)


if __name__ == '__main__':
    cli.run(main)
