"""Defaults of fine-tuning against a regression, frozen stages and random weights: ``python -m research.finetune``.

PHOTOS are class folders; OUT gets runs.csv, table.md and a folder for each run. Finished runs are kept.
"""

from pathlib import Path

from mobileone_ext import cli
from research import tuning

ARMS = ['default', 'fused', 'frozen stages', 'from scratch', 'logistic regression']


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument('photos')
    tuning.add_arguments(parser, seeds=[0, 1, 2], size=128, epochs=20)
    parser.add_argument('--test-photos', type=Path, metavar='LIST', help='photos to measure on (a fifth, by the tool)')
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=ARMS, help='which of them (all)')
    parser.add_argument(
        '--choose-lr', type=float, nargs='+', metavar='LR', help='try these inside the training part, and no arm'
    )
    return parser.parse_args()


def main():
    args = parse_args()
    from mobileone_ext.engine.finetune import Options
    from research.finetune import study
    from research.training import read_rows

    args.out.mkdir(parents=True, exist_ok=True)
    options = Options(args.photos, weights=args.weights, size=args.size, epochs=args.epochs)
    if args.choose_lr:
        study.choose_lr(options, args.choose_lr, args.out, args.test_photos)
        return
    study.run_all(options, args.out, args.arms, args.seeds, args.test_photos)
    text = study.table(read_rows(args.out / 'runs.csv'))
    (args.out / 'table.md').write_text(text + '\n', encoding='utf-8')
    print(text)


if __name__ == '__main__':
    cli.run(main)
