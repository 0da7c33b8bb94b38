"""Accuracy of a checkpoint or an exported file: ``python tools/test.py [CONFIG] NETWORK``."""

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    cli.add_network_arguments(parser)
    parser.add_argument('--data', metavar='ROOT', help='where the data lies, instead of every data_root of the config')
    cli.add_input_argument(parser)
    parser.add_argument(
        '--against', metavar='CHECKPOINT', help='with an exported file: how many predictions differ from these weights'
    )
    parser.add_argument('--out', metavar='JSON', help='write the metrics to this file')
    parser.add_argument('--html', metavar='FILE', help='write a page with every image, what it is and was taken for')
    parser.add_argument('--work-dir', help='where the log goes (work_dirs/CONFIG/test)')
    cli.add_launcher_argument(parser)
    return parser.parse_intermixed_args()


def main():
    args = parse_args()
    from mobileone_ext.deploy.described import named_network
    from mobileone_ext.deploy.runtime import is_exported

    if not args.config and is_exported(args.network):
        raise ValueError(
            f'{args.network}: does not say on which photos to measure it; name a config or a run before it'
        )
    config, network = named_network(args)
    from mobileone_ext import files
    from mobileone_ext.deploy.export import load_fused
    from mobileone_ext.deploy.exported import ExportedClassifier
    from mobileone_ext.deploy.fuse import read_weights
    from mobileone_ext.engine import metrics
    from mobileone_ext.engine.collect import CollectHook
    from mobileone_ext.engine.photo_page import write_test_page
    from mobileone_ext.engine.test import evaluate, evaluate_file
    from mobileone_ext.engine.train import use_data, use_work_dir
    from mobileone_ext.pictures import legend

    files.check_outputs([args.out, args.html], args.config, network)
    if args.html and args.launcher != 'none':
        raise ValueError(f'--html with --launcher {args.launcher}: a page is of one process')
    collect = CollectHook() if args.html else None
    if args.data:
        use_data(config, args.data)
    use_work_dir(config, args.work_dir, 'test')
    config.launcher = args.launcher
    if is_exported(network):
        reference = args.against and load_fused(config, args.against, args.ema, args.trust_checkpoint)
        classifier = ExportedClassifier(config, network, args.input, reference or None)
        assumed = ' (assumed: the file does not say; --input tells)' if classifier.assumed else ''
        print(f'{network}: takes {classifier.takes} images{assumed}')
        results = evaluate_file(config, classifier, collect)
    elif args.against or args.input:
        raise ValueError(f'{network}: --against and --input are for exported files')
    else:
        weights = read_weights(config, network, args.ema, args.trust_checkpoint)
        kind = f'{weights.structure}, {weights.layout} layout' if weights.structure else 'not a MobileOne'
        print(f'{network}: {kind}, from {weights.source}')
        results = evaluate(config, weights, collect)
    if cli.rank():
        return  # the first process has the same results, and writes them
    classes = results.pop('classes', None)
    metrics.show(results, classes)
    if args.against:
        print(
            f'against {args.against}: {results["changed_predictions"]} predictions changed, outputs differ by '
            f'{results["max_abs_logit_diff"]:.1e} at most, {results["max_rel_logit_diff"]:.1e} of the largest'
        )
    if args.out:
        files.write_json({**results, **({'classes': classes} if classes else {})}, args.out)
        cli.say_written(args.out)
        pictures = metrics.draw_matrices(results, classes, args.out)
        for picture in pictures:
            print(f'{picture}: confusion matrix')
        numbers = legend(classes or ())
        if pictures and numbers:
            print(f'in pictures, numbers stand for names that no font here has: {numbers}')
    if args.html:
        write_test_page(args.html, config, collect, network, results, classes)
        print(f'{args.html}: every image')


if __name__ == '__main__':
    cli.run(main)
