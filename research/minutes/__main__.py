"""What minutes of training buy, by one config and by another: ``python -m research.minutes DATA OUT CONFIG ...``.

Every config is trained with every seed, in turns, and measured on its test set. OUT gets a folder for each run,
runs.csv (a row as a run finishes), table.md and minutes.png. Stop it whenever you like: finished runs are kept, an
unfinished one goes on from its last checkpoint.
"""

from pathlib import Path

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument('data', help='train/CLASS/* and val/CLASS/*')
    parser.add_argument('out', type=Path)
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    cli.add_cfg_options(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    from research.minutes import study

    args.out.mkdir(parents=True, exist_ok=True)
    configs = {Path(name).stem: cli.load_config(name, args.cfg_options) for name in args.configs}
    study.run_all(study.plan(configs, args.seeds, args.data, args.out), args.out / study.ROWS)
    print(study.report(args.out))


if __name__ == '__main__':
    cli.run(main)
