"""Two networks on the same photos, without labels: ``python tools/compare.py NETWORK NETWORK --images DIR``."""

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument(
        'networks',
        nargs=2,
        metavar='network',
        help="a checkpoint, an exported file, a run's folder, or published weights by name",
    )
    cli.add_images_arguments(parser, 'image files or folders', nargs='+', required=True)
    parser.add_argument('--config', help='of a network that does not say itself which images it takes')
    cli.add_cfg_options(parser)
    cli.add_weights_arguments(parser)
    cli.add_input_argument(parser)
    parser.add_argument('--out', metavar='JSON', help='write what was found to this file')
    return parser.parse_args()


def main():
    args = parse_args()
    from mobileone_ext import files
    from mobileone_ext.data.images import Listing, find_images, spread
    from mobileone_ext.deploy import classifier, compare_files
    from mobileone_ext.text import printable

    images, skipped = find_images(args.images), []
    paths = Listing(spread(images, args.num_images))
    how = dict(otherwise=args.config, options=args.cfg_options, ema=args.ema, trust=args.trust_checkpoint)
    networks = [classifier.open_classifier(name, **how, takes=args.input) for name in args.networks]
    files.check_outputs([args.out], args.config, *(network.path for network in networks), *paths)
    for network in networks:
        print(printable(network.note or f'{network.path}: described by {args.config}'))
    report = compare_files.compare_files(*networks, paths, skipped)
    for message in skipped:
        print(f'skipped {printable(message)}')
    if images.note:
        print(images.note)
    print(compare_files.describe(report))
    if args.out:
        files.write_json(report, args.out)
    cli.say_written(args.out)


if __name__ == '__main__':
    cli.run(main)
