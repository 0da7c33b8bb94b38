"""What fine-tuning should do by default: ``python -m research.defaults TRASHNET IMAGENETTE OUT --weights FILE``.

TRASHNET are class folders; IMAGENETTE holds train/CLASS and val/CLASS. OUT gets rows.csv (a row as a run finishes) and
table.md. Stop it whenever you like: finished runs are kept, an unfinished one goes on from its last epoch. What is run
and how the choice is made was fixed beforehand: research/defaults/study.py.
"""

from pathlib import Path

from mobileone_ext import cli

TEST_PHOTOS = Path(__file__).parents[1] / 'finetune/test_photos.txt'


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument('trashnet', type=Path)
    parser.add_argument('imagenette', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--weights', required=True, help='fused weights to start from')
    parser.add_argument('--share', type=int, nargs=2, metavar=('I', 'N'), default=(0, 1), help='this of N processes')
    parser.add_argument('--table', action='store_true', help='only write the table of the rows that are there')
    return parser.parse_args()


def main():
    args = parse_args()
    from mobileone_ext.files import write_text
    from research.defaults import study
    from research.training import read_rows

    if not args.table:
        args.out.mkdir(parents=True, exist_ok=True)
        left_out = frozenset(TEST_PHOTOS.read_text(encoding='utf-8').splitlines())
        photos = dict(trashnet=args.trashnet, imagenette=args.imagenette)
        study.run_all(photos, args.weights, args.out, left_out, tuple(args.share))
    table = study.table(read_rows(args.out / study.ROWS))
    write_text(table + '\n', args.out / 'table.md')
    print(table)


if __name__ == '__main__':
    cli.run(main)
