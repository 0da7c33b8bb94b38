"""Fine-tune fused weights with and without branches: ``python -m research.unfuse WEIGHTS DATA OUT``.

WEIGHTS are fused, of a published variant; DATA has train/CLASS and val/CLASS; OUT
is a folder for runs.csv and table.md. Finished runs are kept, so it can go on.
"""

from pathlib import Path

from mobileone_ext import cli

ARMS = ['fused', 'norm alone', 'branches']


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument('weights', type=Path)
    parser.add_argument('data', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=ARMS, help='which of them (all)')
    parser.add_argument('--lrs', type=float, nargs='+', help='learning rates to try (the chosen one of each arm)')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--epochs', type=int, default=2)
    parser.add_argument('--image-size', type=int, default=128)
    return parser.parse_args()


def main():
    args = parse_args()
    from mobileone_ext.checkpoints.load import load_weights
    from research.training import Images, read_rows
    from research.unfuse import study

    weights = load_weights(args.weights)
    if weights.form != 'fused' or weights.structure.variant is None or weights.num_classes is None:
        raise ValueError(f'{args.weights}: fused weights of a published variant with a head are needed')
    args.out.mkdir(parents=True, exist_ok=True)
    short_edge = round(args.image_size * 256 / 224)
    train, val = (Images(args.data / split, short_edge) for split in ('train', 'val'))
    backbones = study.starting_points(weights, train, args.image_size)
    changed = study.changed_predictions(backbones, weights, val, args.image_size)
    for arm, count in changed.items():
        print(f'before training, {arm}: {count} of {len(val.images)} predictions differ from the fused network')
    backbones = {arm: backbones[arm] for arm in args.arms}
    runs = args.out / 'runs.csv'
    study.run_all(backbones, train, val, runs, args.lrs, args.seeds, args.epochs, args.image_size)
    table = study.table(read_rows(runs))
    (args.out / 'table.md').write_text(table + '\n', encoding='utf-8')
    print(table)


if __name__ == '__main__':
    cli.run(main)
