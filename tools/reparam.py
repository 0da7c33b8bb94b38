"""Fuse a trained MobileOne and prove it: ``python tools/reparam.py CONFIG CHECKPOINT OUT``."""

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    cli.add_config_arguments(parser)
    cli.add_checkpoint_arguments(parser)
    parser.add_argument('out', help='the fused checkpoint to write')
    parser.add_argument('--report', metavar='JSON', help='write the comparison to this file')
    cli.add_evaluate_argument(parser, True, 'compare before and after on the test set', '--no-eval')
    parser.add_argument('--max-flips', type=flips, default=0, metavar='N', help='that may change; N or any (0)')
    return parser.parse_args()


def flips(text: str) -> int | None:
    """A number of predictions, or None for ``any``."""
    return None if text == 'any' else cli.count(text)


def main():
    args = parse_args()
    config = cli.load_config(args.config, args.cfg_options)
    from mobileone_ext.deploy import reparam as conversion

    report = conversion.convert(
        config,
        args.checkpoint,
        args.out,
        ema=args.ema,
        trust=args.trust_checkpoint,
        report_path=args.report,
        evaluate=args.evaluate,
        max_flips=args.max_flips,
    )
    conversion.show(report)
    return 0


if __name__ == '__main__':
    cli.run(main)
