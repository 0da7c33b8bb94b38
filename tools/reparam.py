"""Fuse a trained network and prove it: ``python tools/reparam.py [CONFIG] NETWORK OUT``.

A network without a config: ``python tools/reparam.py --model package.module:function CHECKPOINT OUT --images DIR``.
"""

from mobileone_ext import cli, deploy


def parse_args():
    parser = cli.Parser(description=__doc__)
    cli.add_network_arguments(parser)
    parser.add_argument('out', help='the fused checkpoint to write')
    parser.add_argument('--report', metavar='JSON', help='write the comparison to this file')
    cli.add_evaluate_argument(parser, True, 'compare before and after on the test set', '--no-eval')
    parser.add_argument('--max-flips', type=flips, default=0, metavar='N', help='that may change; N or any (0)')
    parser.add_argument(
        '--model', metavar='PACKAGE.MODULE:FUNCTION', help='gives a network with its branches, which needs no config'
    )
    cli.add_images_arguments(parser, 'with --model: compare before and after on these photos (noise)', 16)
    parser.add_argument(
        '--image-size', type=cli.positive, default=deploy.DEFAULT_SIZE, metavar='N', help='of these, in pixels (224)'
    )
    parser.add_argument(
        '--inputs',
        metavar='PACKAGE.MODULE:FUNCTION',
        help='with --model: gives what a network takes that takes no images: a tuple or a dict of arguments',
    )
    parser.add_argument(
        '--prepare', action='store_true', help='with --model: even out channels too, for the quantizers of others'
    )
    args = parser.parse_intermixed_args()  # options may stand between the files
    if args.config and args.model:
        parser.error('--model PACKAGE.MODULE:FUNCTION CHECKPOINT OUT takes no config')
    alien = [name for name in ('images', 'inputs', 'prepare') if not args.model and getattr(args, name)]
    if alien:
        parser.error(f'--{alien[0]} belongs to --model')
    return args


def flips(text: str) -> int | None:
    """A number of predictions, or None for ``any``."""
    return None if text == 'any' else cli.count(text)


def photos(args):
    """Normalized as for ImageNet."""
    import torch

    from mobileone_ext.data.calibration import calibration_batches

    return torch.cat([*calibration_batches(args.images, args.num_images, args.image_size)])


def main():
    args = parse_args()
    if args.model:
        from mobileone_ext.deploy.reparam import called, convert_any

        images = called(args.inputs) if args.inputs else photos(args) if args.images else None
        files = args.network, args.out
        print(convert_any(args.model, *files, images, args.ema, args.trust_checkpoint, args.report, args.prepare))
        cli.say_written(args.out, args.report)
        return 0
    from mobileone_ext.deploy import reparam as conversion
    from mobileone_ext.deploy.described import named_network

    config, network = named_network(args)

    report = conversion.convert(
        config,
        network,
        args.out,
        ema=args.ema,
        trust=args.trust_checkpoint,
        report_path=args.report,
        evaluate=args.evaluate,
        max_flips=args.max_flips,
    )
    conversion.show(report)
    cli.say_written(args.out, args.report)
    return 0


if __name__ == '__main__':
    cli.run(main)
