"""Write a trained network for a device: ``python tools/export.py CONFIG CHECKPOINT OUT --format onnx``."""

from mobileone_ext import cli, deploy


def parse_args():
    parser = cli.Parser(description=__doc__)
    cli.add_config_arguments(parser)
    cli.add_checkpoint_arguments(parser)
    parser.add_argument(
        'out',
        help='the file to write: *.onnx, *.ort, *.pt, *.pt2, *.xml, *.mlpackage, *.tflite, *.pte, *.param or *.mnn',
    )
    parser.add_argument(
        '--format',
        default='onnx',
        help='onnx, ort, torchscript, openvino, coreml, litert, executorch, ncnn or mnn (onnx)',
    )
    parser.add_argument('--half', action='store_true', help='float16 inside; input and output stay float32')
    deploy.add_file_arguments(parser)
    parser.add_argument('--input-name', default='image', metavar='NAME', help="of the graph's input (image)")
    parser.add_argument('--fixed-batch', action='store_true', help='one image at a time instead of any number')
    parser.add_argument('--images', metavar='DIR', help='compare the written file with PyTorch on these images')
    parser.add_argument(
        '--num-images', type=cli.positive, default=1300, metavar='N', help='how many of them at most (1300)'
    )
    parser.add_argument('--flops', action='store_true', help='print the column "FLOPs (G)" of vendors\' tables as well')
    return parser.parse_args()


def main():
    args = parse_args()
    config = cli.load_config(args.config, args.cfg_options)
    from mobileone_ext.data.pixels import Normalize
    from mobileone_ext.deploy import cost, export
    from mobileone_ext.deploy.runtime import open_network
    from mobileone_ext.text import printable

    export.check_distinct(args.out, args.config, args.checkpoint)
    export.check_request(args.out, args.format, args.opset, args.size, args.input_name)
    model = export.load_fused(config, args.checkpoint, args.ema, args.trust_checkpoint)
    net = export.DeployNet(model, Normalize(config) if args.normalize else None, args.softmax)
    metadata = export.file_metadata(config, args.checkpoint, args.normalize, args.softmax, model.classes)
    metadata.update(export.facts(args.format, args.size, args.half))

    def check(path):
        if args.format == 'coreml':
            return None
        network = open_network(path)
        export.compare_on_noise(net, network, args.size, args.half)
        if args.images:
            return export.compare(config, net, network, args.images, args.num_images, args.half)
        return None

    report = export.export(
        net,
        args.out,
        args.format,
        args.size,
        args.opset,
        not args.fixed_batch,
        metadata,
        check,
        args.half,
        args.input_name,
    )
    print(f'{args.out}: written')
    print(cost.describe(model, args.size, args.flops))
    if args.format == 'coreml':
        print('CoreML runs on macOS alone: compare it with PyTorch there')
    if report:
        difference, skipped = report
        for message in skipped:
            print(f'skipped {printable(message)}')
        print(
            f'{difference.num_images} images: {difference.changed_predictions} predictions changed, '
            f'outputs within {difference.max_rel_diff:.1e} of the largest'
        )


if __name__ == '__main__':
    cli.run(main)
