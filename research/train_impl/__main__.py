"""Train S0 from branches and from moments on the same images, and compare losses and accuracy.

    python -m research.train_impl DATA OUT

DATA holds train/CLASS/* and val/CLASS/*. Every finished run is a line of OUT/runs.csv
and is not repeated; OUT/table.md and OUT/losses.png are made of them.
"""

from pathlib import Path

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument('data', type=Path, help='folder with train/ and val/')
    parser.add_argument('out', type=Path, help='folder for runs.csv, table.md and losses.png')
    parser.add_argument('--weights', help='fused weights of S0 to start from, un-fused; from scratch without them')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--lr', type=float, default=0.0125, help='peak learning rate (%(default)s)')
    parser.add_argument('--steps', type=int, default=200, help='optimizer steps of a run (%(default)s)')
    parser.add_argument('--image-size', type=int, default=96, help='pixels (%(default)s)')
    return parser.parse_args()


def main():
    args = parse_args()
    from mobileone_ext.checkpoints.load import load_weights
    from mobileone_ext.files import write_text
    from research.train_impl import study
    from research.training import Images
    from research.unfuse.study import starting_points

    if args.steps < 1:
        raise ValueError(f'--steps {args.steps}: at least 1')
    args.out.mkdir(parents=True, exist_ok=True)
    short_edge = round(args.image_size * 256 / 224)
    train, val = (Images(args.data / split, short_edge) for split in ('train', 'val'))
    start = None
    if args.weights:
        start = starting_points(load_weights(args.weights), train, args.image_size)['branches']
    runs = args.out / 'runs.csv'
    study.run_all(study.Training(start, train, val, args.lr, args.steps, args.image_size), runs, args.seeds)
    finished = study.read_runs(runs)
    table = study.table(finished)
    write_text(table + '\n', args.out / 'table.md')
    study.draw(finished, args.out / 'losses.png')
    print(table)


if __name__ == '__main__':
    cli.run(main)
