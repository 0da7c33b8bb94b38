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
    from mobileone_ext.checkpoints.load import load_weights
    from mobileone_ext.engine.test import evaluate
    from mobileone_ext.engine.train import use_work_dir

    if args.out:
        files.check_writable(args.out)
        files.check_distinct(args.out, args.config, args.checkpoint)
    use_work_dir(config, args.work_dir, 'test')
    config.launcher = args.launcher
    weights = load_weights(args.checkpoint, args.ema, args.trust_checkpoint)
    print(f'{args.checkpoint}: {weights.structure}, {weights.layout} layout, from {weights.source}')
    metrics = evaluate(config, weights, args.checkpoint)
    print(
        f'top-1 {metrics["accuracy/top1"]:.2f}, top-5 {metrics["accuracy/top5"]:.2f} on {metrics["num_images"]} images'
    )
    if args.out:
        files.write_json(metrics, args.out)


if __name__ == '__main__':
    cli.run(main)
