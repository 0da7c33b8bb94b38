"""What do minutes of training buy, and which part of the recipe buys it? ``python -m research.minutes DATA OUT``.

DATA holds Imagenette's train/CLASS/* and val/CLASS/*. OUT gets a folder for each run, runs.csv (a row as a run
finishes), table.md and minutes.png. Stop it whenever you like: finished runs are kept, an unfinished one goes on from
its last epoch. What is run and compared, and why so much, was fixed beforehand: research/minutes/study.py.
"""

from pathlib import Path

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument('data', help='train/CLASS/* and val/CLASS/*')
    parser.add_argument('out', type=Path)
    cli.add_cfg_options(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    from mobileone_ext.engine.train import use_data
    from research.minutes import study

    base = cli.load_config(study.BASE, args.cfg_options)
    use_data(base, args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    study.run_all(study.plan(base, args.out), args.out / study.ROWS)
    print(study.report(args.out))


if __name__ == '__main__':
    cli.run(main)
