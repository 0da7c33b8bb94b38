"""How exact are a block's gradients, by kernels, operators and branches? ``python -m research.gradients DATA OUT``.

DATA holds train/CLASS/*. OUT gets table.md, and errors.csv with a line for each block in each state of training.
"""

from pathlib import Path

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument('data', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--weights', help='fused weights of S0: states of fine-tuning, un-fused, too')
    parser.add_argument('--steps', type=int, nargs='+', default=[0, 20, 100], help='look after so many (%(default)s)')
    parser.add_argument('--image-size', type=int, default=128, help='pixels (%(default)s)')
    parser.add_argument('--batch-size', type=int, default=16, help='photos of a gradient (%(default)s)')
    return parser.parse_args()


def main():
    args = parse_args()
    from mobileone_ext.checkpoints.load import load_weights
    from mobileone_ext.files import csv_text, write_text
    from research.gradients import study
    from research.training import Images

    args.out.mkdir(parents=True, exist_ok=True)
    train = Images(args.data / 'train', round(args.image_size * 256 / 224))
    weights = load_weights(args.weights) if args.weights else None
    rows = []
    for state, backbone, head in study.states(train, weights, args.steps, args.image_size):
        rows += study.errors(state, backbone, head, train, args.image_size, args.batch_size)
        print(f'{state}: measured', flush=True)
    write_text(csv_text(rows, tuple(rows[0])), args.out / 'errors.csv')
    table = study.table(rows)
    write_text(table + '\n', args.out / 'table.md')
    print(table)


if __name__ == '__main__':
    cli.run(main)
