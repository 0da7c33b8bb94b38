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
    parser.add_argument('--all', action='store_true', help='show scores also where the best is below the threshold')
    parser.add_argument('--out', metavar='FILE', help='write all results to *.json or *.csv')
    parser.add_argument('--draw', type=cli.folder, metavar='DIR', help='write annotated pictures to this folder')
    parser.add_argument(
        '--explain',
        type=cli.folder,
        metavar='DIR',
        help='the same, with where the network looked for its best class (a checkpoint)',
    )
    return parser.parse_args()


def main():
    args = parse_args()
    from mobileone_ext import files
    from mobileone_ext.data.images import find_images
    from mobileone_ext.deploy import classifier, predict, runtime
    from mobileone_ext.metadata import Metadata, fit_of
    from mobileone_ext.text import printable

    if args.out:
        predict.check_format(args.out)
    config = args.network if runtime.names_config(args.network) else None
    network, *images = args.images if config else [args.network, *args.images]
    if not images:
        raise ValueError(f'{config}: is a config; name the network and then images behind it')
    network = runtime.file_of(network)
    missing: list[str] = []
    paths = find_images(images, missing)
    classify = classifier.open_classifier(
        network,
        config,
        options=args.cfg_options,
        ema=args.ema,
        trust=args.trust_checkpoint,
        takes=args.input,
        explain=bool(args.explain),
    )
    if classify.note:
        print(printable(classify.note))
    files.check_outputs([args.out], config, classify.path, *paths)
    for folder in filter(None, (args.draw, args.explain)):
        Path(folder).mkdir(parents=True, exist_ok=True)

    skipped: list[str] = []
    results = predict.predict(classify, paths, args.top, skipped)
    if args.out:
        files.write_text(predict.FORMATS[files.suffix_of(args.out)](results), args.out)
    not_drawn = predict.save_drawings(results, Path(args.draw), paths) if args.draw else []
    if args.explain:
        view = Metadata(**fit_of(classify.preprocessing.pipeline))
        not_drawn += predict.save_drawings(results, Path(args.explain), paths, view)

    for result in results:
        print(printable(result['image']))
        for line in predict.answer(result, classify.metadata.threshold, args.all):
            print(f'  {line}')
    for message in not_drawn:
        print(f'not drawn: {printable(message)}')
    for message in skipped:
        print(f'skipped {printable(message)}')
    if skipped:
        print(f'{len(skipped)} of {len(paths)} files are not readable images')
    if paths.note:
        print(paths.note)
    cli.say_written(args.out, args.draw, args.explain)
    if missing:
        raise ValueError('; '.join(missing))


if __name__ == '__main__':
    cli.run(main)
