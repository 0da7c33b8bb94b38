"""Write a trained network for a device: ``python tools/export.py [CONFIG] NETWORK OUT``."""

from contextlib import nullcontext

from mobileone_ext import cli, deploy
from mobileone_ext.deploy.formats import FORMAT_OF_SUFFIX, FORMATS, format_of


def parse_args():
    parser = cli.Parser(description=__doc__)
    cli.add_network_arguments(parser)
    suffixes = ', '.join(f'*{suffix}' for suffix in FORMAT_OF_SUFFIX)
    parser.add_argument('out', help=f'the file to write, whose suffix says the format: {suffixes}')
    parser.add_argument(
        '--format',
        choices=[*FORMATS, 'web'],
        help=f'web: OUT is a folder with a page for browsers; or {", ".join(FORMATS)} (that of the suffix)',
    )
    parser.add_argument('--single-file', action='store_true', help='a page in one HTML file, which needs no host')
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument('--half', action='store_true', help='float16 inside; input and output stay float32')
    precision.add_argument('--float32', action='store_true', help='float32 inside, where float16 is the default')
    parser.add_argument(
        '--heatmap', action='store_true', help='a second output: where each logit comes from (onnx, ort, web)'
    )
    deploy.add_file_arguments(parser)
    parser.add_argument(
        '--input-name', type=deploy.input_name, default='image', metavar='NAME', help="of the graph's input (image)"
    )
    parser.add_argument('--fixed-batch', action='store_true', help='one image at a time instead of any number')
    cli.add_images_arguments(parser, 'compare the written file with PyTorch on these images')
    parser.add_argument('--flops', action='store_true', help='print the column "FLOPs (G)" of vendors\' tables as well')
    parser.add_argument('--layers', action='store_true', help='print what each layer costs, with its time here')
    return parser.parse_intermixed_args()


def main():
    args = parse_args()
    from mobileone_ext.data.images import Listing, find_images, spread
    from mobileone_ext.data.pixels import Preprocessing
    from mobileone_ext.deploy import cost, export, web
    from mobileone_ext.deploy.described import named_network
    from mobileone_ext.text import print_table, printable

    is_page = args.format == 'web'
    if args.single_file and not is_page:
        raise ValueError('--single-file: is of --format web')
    if is_page and web.is_exported(args.network):
        web.page_of(args.network, args.out, args.single_file)
        return cli.say_written(args.out)
    form = 'onnx' if is_page else args.format or format_of(args.out)
    config, network = named_network(args, whole=False)
    preprocessing = Preprocessing(config)
    size = args.size or preprocessing.side()
    if not is_page:
        export.check_place(args.out, form, args.config, network)
    photos, skipped = find_images([args.images] if args.images else []), []
    sources = args.config, network
    with web.page(args.out, args.single_file, *sources) if is_page else nullcontext(args.out) as out:
        model = export.load_fused(config, network, args.ema, args.trust_checkpoint)
        difference = export.export(
            model,
            out,
            format=form,
            image_size=size,
            normalize=args.normalize,
            softmax=args.softmax,
            photos=Listing(spread(photos, args.num_images)),
            preprocessing=preprocessing,
            skipped=skipped,
            opset=args.opset,
            half=args.half,
            float32=args.float32,
            heatmap=args.heatmap,
            dynamic_batch=not args.fixed_batch,
            input_name=args.input_name,
        )
    cli.say_written(args.out)
    print(cost.describe(model, size, args.flops))
    if args.layers:
        rows = [(*row[:3], *map('{:,}'.format, row[3:5]), f'{row[5]:.3f}') for row in cost.layers(model, size)]
        print_table('layers, time by onnxruntime on one thread', cost.COLUMNS, rows)
    if note := export.note(form, args.normalize, args.softmax):
        print(note)
    if not FORMATS[form].runs_here:
        print(f'{form} runs on {FORMATS[form].platform} alone: compare it with PyTorch there')
    for message in skipped:
        print(f'skipped {printable(message)}')
    if photos.note:
        print(f'{args.images}: {photos.note}')
    if difference:
        print(
            f'compared with PyTorch on {difference.num_images} images{"" if photos else " of noise"}: '
            f'{difference.changed_predictions} predictions changed, '
            f'outputs within {difference.max_rel_diff:.1e} of the largest'
        )


if __name__ == '__main__':
    cli.run(main)
