"""Why do branches learn slower at first? ``python -m research.mechanism DATA OUT``.

DATA holds Imagenette's train/CLASS/* and val/CLASS/*. OUT gets a folder for each run, rows.csv (a row as a run
finishes) and table.md. Stop it whenever you like: finished runs are kept, an unfinished one goes on from its last
epoch; with --factors, two processes may run at the same time. What is run and tested, and why so much, was fixed
beforehand: research/mechanism/study.py.
"""

from pathlib import Path

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument('data', help='train/CLASS/* and val/CLASS/*')
    parser.add_argument('out', type=Path)
    parser.add_argument('--factors', type=int, nargs='+', default=(1, 2, 4), help='of the learning rate (%(default)s)')
    parser.add_argument('--table', action='store_true', help='only write the table of the rows that are there')
    cli.add_cfg_options(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    from mobileone_ext.engine.train import use_data
    from mobileone_ext.files import write_text
    from research.mechanism import study
    from research.training import read_rows

    if not args.table:
        base = cli.load_config(study.BASE, args.cfg_options)
        use_data(base, args.data)
        args.out.mkdir(parents=True, exist_ok=True)
        runs = (run for run in study.plan(base, args.out) if run[1] in args.factors)
        study.run_all(runs, args.out / study.ROWS)
    table = study.table(read_rows(args.out / study.ROWS))
    write_text(table + '\n', args.out / 'table.md')
    print(table)


if __name__ == '__main__':
    cli.run(main)
