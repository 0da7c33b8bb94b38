"""Int8 from eight sets of photos, in four forms: ``python -m research.int8 CONFIG WEIGHTS OWN OUTSIDE OUT``.

OWN has training photos in class folders, OUTSIDE photos of something else; measured on the config's test set. OUT gets
rows.csv, a row as each file is measured, and table.md; rows that are there are kept. What is run and compared was fixed
beforehand: research/int8/study.py. ``--others``, instead: quantizers of others at their best, from two sets; ``pip
install nncf MNN``.
"""

from pathlib import Path

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    cli.add_config_arguments(parser)
    parser.add_argument('weights')
    parser.add_argument('own', type=Path)
    parser.add_argument('outside', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--others', action='store_true', help='quantizers of others, from two sets of photos')
    parser.add_argument(
        '--sets', type=int, nargs='+', metavar='N', help='some of the sets, by their numbers from 0 (all)'
    )
    return parser.parse_args()


def main():
    args = parse_args()
    config = cli.load_config(args.config, args.cfg_options)
    from mobileone_ext.files import write_text
    from research.int8 import study
    from research.training import read_rows

    args.out.mkdir(parents=True, exist_ok=True)
    plan = study.OTHERS if args.others else study.PHOTOS
    names = list(plan.sets)
    names = names if args.sets is None else [names[number] for number in args.sets]
    path = args.out / 'rows.csv'
    study.run_all(config, args.weights, args.own, args.outside, path, plan, names)
    table = study.table(read_rows(path), plan)
    write_text(table + '\n', args.out / 'table.md')
    print(table)


if __name__ == '__main__':
    cli.run(main)
