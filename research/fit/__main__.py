"""Crop, pad or squash photos that are not square: ``python -m research.fit PHOTOS VAL OUT --weights FILE``.

PHOTOS and VAL are class folders of square photos; OUT gets rows.csv and a folder for each run. Finished runs are kept.
"""

from pathlib import Path

from mobileone_ext import cli
from research import tuning


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument('photos', type=Path)
    parser.add_argument('val', type=Path)
    tuning.add_arguments(parser, seeds=[0], size=96, epochs=3)
    return parser.parse_args()


def main():
    args = parse_args()
    from research.fit import study

    tuning.run_all(study, args, [args.photos, args.val])


if __name__ == '__main__':
    cli.run(main)
