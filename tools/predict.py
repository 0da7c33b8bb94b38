"""Classify images: ``python tools/predict.py [CONFIG] NETWORK IMAGE...|DIR``."""

from pathlib import Path

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument(
        'network',
        help="a run's folder, a checkpoint that a run wrote, an exported file, or published weights by name; or else a "
        'config, and then the checkpoint or exported file that it is for',
    )
    parser.add_argument('images', nargs='+', help='image files or folders')
    cli.add_cfg_options(parser)
    cli.add_weights_arguments(parser)
    cli.add_input_argument(parser)
    parser.add_argument('--top', type=cli.positive, default=5, metavar='K', help='classes to show for each image (5)')
    parser.add_argument('--out', metavar='FILE', help='write all results to *.json or *.csv')
    parser.add_argument('--draw', metavar='DIR', help='write annotated pictures to this folder')
    return parser.parse_args()


def by_config(args) -> tuple:
    """The config that is named, the photos, and the classifier: of a network by a config, named or its run's."""
    from mobileone_ext.data.images import find_images
    from mobileone_ext.deploy import classifier, described

    named = args.network if described.names_config(args.network) else None
    name, *images = args.images if named else [args.network, *args.images]
    if not images:
        raise ValueError(f'{named}: is a config; name the network and then images behind it')
    paths = find_images(images)
    if named:
        network = described.Described(cli.load_config(named, args.cfg_options), described.file_of(name))
    else:
        network = described.find_network(name, None, args.cfg_options, args.trust_checkpoint)
    opened = classifier.open_classifier(network.config, network.path, args.ema, args.trust_checkpoint, args.input)
    opened.note = network.note
    return named, paths, opened


def main():
    args = parse_args()
    from mobileone_ext import files
    from mobileone_ext.data.images import find_images
    from mobileone_ext.deploy import predict, runtime
    from mobileone_ext.text import printable, with_progress

    if args.out:
        predict.check_format(args.out)
    if runtime.is_exported(args.network) and not args.cfg_options:  # torch and mmpretrain stay out
        named, paths = None, find_images(args.images)
        classify = runtime.FileClassifier(args.network, args.input)
    else:
        named, paths, classify = by_config(args)
    if classify.note:
        print(printable(classify.note))
    files.check_outputs([args.out], named, classify.path, *paths)
    if args.draw:
        Path(args.draw).mkdir(parents=True, exist_ok=True)

    skipped: list[str] = []
    results = list(with_progress(predict.predict(classify, paths, skipped, args.top), 'photos', len(paths)))
    if args.out:
        files.write_text(predict.FORMATS[files.suffix_of(args.out)](results), args.out)
    not_drawn = predict.save_drawings(results, Path(args.draw), paths) if args.draw else []

    for result in results:
        print(printable(result['image']))
        for best in result['predictions']:
            print(f'  {best["score"]:6.1%}  {printable(best["label"])}')
    for message in not_drawn:
        print(f'not drawn: {printable(message)}')
    for message in skipped:
        print(f'skipped {printable(message)}')
    if skipped:
        print(f'{len(skipped)} of {len(paths)} files are not readable images')
    if paths.note:
        print(paths.note)


if __name__ == '__main__':
    cli.run(main)
