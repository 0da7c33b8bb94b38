"""Does S0 learn the same by moments as by its branches? ``python -m research.train_impl DATA OUT``.

DATA holds Imagenette's train/CLASS/* and val/CLASS/*, for the runs from weights. OUT gets a CSV for each start (a row
as a run finishes) and table.md. Stop it whenever you like and call it again; with --starts, a process for each start
may run at the same time. What is run and tested, and why so much, was fixed beforehand: research/train_impl/study.py.
"""

from pathlib import Path

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument('data', type=Path, help='train/CLASS/* and val/CLASS/*')
    parser.add_argument('out', type=Path)
    parser.add_argument('--starts', nargs='+', choices=('weights', 'scratch'), default=('weights', 'scratch'))
    parser.add_argument('--weights', default='apple/mobileone_s0-fused', help='fused weights of S0 (%(default)s)')
    return parser.parse_args()


def main():
    args = parse_args()
    import torch

    from mobileone_ext.files import write_text
    from research.train_impl import study

    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    starts = dict(weights=lambda: study.from_weights(args.data, args.weights), scratch=study.from_scratch)
    study.run_all({start: starts[start] for start in args.starts}, args.out)
    table = study.table(args.out)
    write_text(table + '\n', args.out / 'table.md')
    print(table)


if __name__ == '__main__':
    cli.run(main)
