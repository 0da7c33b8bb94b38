"""Crop, pad or squash photos that are not square: ``python -m research.fit PHOTOS VAL OUT --weights FILE``.

PHOTOS and VAL are class folders of square photos; OUT gets rows.csv and a folder for each run. Finished runs are kept.
"""

from pathlib import Path

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument('photos', type=Path)
    parser.add_argument('val', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--weights', required=True, help='fused weights to start from')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--image-size', '--size', dest='size', type=int, default=96)
    parser.add_argument('--epochs', type=int, default=3)
    return parser.parse_args()


def main():
    args = parse_args()
    from mobileone_ext.text import markdown_table
    from research.fit import study

    args.out.mkdir(parents=True, exist_ok=True)
    options = dict(weights=args.weights, size=args.size, epochs=args.epochs)
    rows = study.run_all(args.photos, args.val, args.out, args.seeds, **options)
    print(markdown_table(study.COLUMNS, ([row[name] for name in study.COLUMNS] for row in rows)))


if __name__ == '__main__':
    cli.run(main)
