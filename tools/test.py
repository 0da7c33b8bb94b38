"""Accuracy of a checkpoint: ``python tools/test.py CONFIG CHECKPOINT``."""

import argparse

from mobileone_ext import cli


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    cli.add_config_arguments(parser)
    cli.add_checkpoint_arguments(parser)
    parser.add_argument('--out', metavar='JSON', help='write the metrics to this file')
    parser.add_argument('--work-dir', help='where the log goes (work_dirs/CONFIG/test)')
    cli.add_launcher_argument(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    config = cli.load_config(args.config, args.cfg_options)
    from mobileone_ext import files
    from mobileone_ext.engine import metrics
    from mobileone_ext.engine.test import evaluate, load_for
    from mobileone_ext.engine.train import use_work_dir

    if args.out:
        files.check_writable(args.out)
        files.check_distinct(args.out, args.config, args.checkpoint)
    use_work_dir(config, args.work_dir, 'test')
    config.launcher = args.launcher
    weights = load_for(config, args.checkpoint, args.ema, args.trust_checkpoint)
    kind = f'{weights.structure}, {weights.layout} layout' if hasattr(weights, 'structure') else 'not a MobileOne'
    print(f'{args.checkpoint}: {kind}, from {weights.source}')
    results = evaluate(config, weights, args.checkpoint)
    classes = results.pop('classes', None)
    metrics.show(results, classes)
    if args.out:
        files.write_json({**results, **({'classes': classes} if classes else {})}, args.out)
        for picture in metrics.draw_matrices(results, classes, args.out):
            print(f'{picture}: confusion matrix')


if __name__ == '__main__':
    cli.run(main)
