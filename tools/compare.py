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
    from mobileone_ext.data.images import find_images, spread
    from mobileone_ext.deploy import classifier, compare_files, described
    from mobileone_ext.text import printable, with_progress

    images, skipped = find_images(args.images), []
    paths = spread(images, args.num_images)
    networks = [
        described.find_network(name, args.config, args.cfg_options, args.trust_checkpoint) for name in args.networks
    ]
    files.check_outputs([args.out], args.config, *(network.path for network in networks), *paths)
    for network in networks:
        print(printable(network.note or f'{network.path}: by {args.config}'))
    classifiers = [
        classifier.open_classifier(network.config, network.path, args.ema, args.trust_checkpoint, args.input)
        for network in networks
    ]
    report = compare_files.compare_files(classifiers, with_progress(paths, 'photos'), skipped)
    for message in skipped:
        print(f'skipped {printable(message)}')
    if images.note:
        print(images.note)
    print(compare_files.describe(report))
    if args.out:
        files.write_json(report, args.out)


if __name__ == '__main__':
    cli.run(main)
