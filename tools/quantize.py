"""Static int8 of a trained network, without labels: ``python tools/quantize.py [CONFIG] NETWORK OUT``."""

from mobileone_ext import cli, deploy
from mobileone_ext.deploy import quantization, runtime


def parse_args():
    parser = cli.Parser(description=__doc__)
    cli.add_network_arguments(parser)
    parser.add_argument(
        'out',
        nargs='?',
        help='the int8 file to write: *.onnx, *.xml (OpenVINO), *.tflite (LiteRT) or *.pte (ExecuTorch); may be left '
        'out with --prepare',
    )
    purpose = "calibration images, not those to be measured on (the config's training set)"
    cli.add_images_arguments(parser, purpose, 200, ('--calib', '--num-calib'))
    parser.add_argument(
        '--weight-bits',
        type=int,
        choices=quantization.WEIGHT_BITS,
        default=7,
        help='7: two neighboring weights share 8 bits, so that sums of products fit 16 bits and the file computes the '
        'same on every processor; 8: for those that add in 32 bits (x86 with VNNI, Arm) (7)',
    )
    parser.add_argument('--per-tensor', action='store_true', help='one weight scale for each layer, not each channel')
    parser.add_argument(
        '--no-equalize', '--no-equalise', action='store_true', help='leave the ranges of channels as they are'
    )
    parser.add_argument(
        '--balance',
        type=cli.fraction,
        default=0.5,
        metavar='X',
        help='of equalization: 1 activations, 0 weights (0.5)',
    )
    parser.add_argument('--absorb-bias', action='store_true', help='high-bias absorption')
    parser.add_argument('--no-bias-correction', action='store_true')
    parser.add_argument('--round-to-nearest', action='store_true', help='no least squares, no compensated rounding')
    parser.add_argument('--ranges', choices=quantization.RANGES, default='mse', help='of activations (mse)')
    parser.add_argument('--keep', nargs='+', default=[], metavar='LAYER', help='layers that stay in float')
    parser.add_argument('--sensitivity', action='store_true', help='print what each layer costs when it alone is int8')
    parser.add_argument(
        '--prepare', metavar='FILE', help='write a float network (*.pth or *.onnx) that other quantizers are to have'
    )
    parser.add_argument(
        '--preround', '--snap', action='store_true', help='round its weights to int8 steps, with the biases for it'
    )
    parser.add_argument(
        '--preround-steps',
        '--snap-steps',
        type=float,
        choices=quantization.PREROUND_STEPS,
        help="that the next quantizer takes to the largest weight: 127, or 127.5 for torchao's x86 quantizer (127)",
    )
    deploy.add_file_arguments(parser, quantization.FIRST_OPSET)
    cli.add_evaluate_argument(parser, False, "measure float and int8 on the config's test set")
    parser.add_argument('--steps', action='store_true', help='measure what each step is worth as well')
    parser.add_argument('--report', metavar='JSON', help='write what was measured to this file')
    args = parser.parse_intermixed_args()
    if args.config and not args.out and not runtime.names_config(args.config):  # two words: NETWORK OUT
        args.config, args.network, args.out = None, args.config, args.network
    return args


def main():
    args = parse_args()
    from mobileone_ext.deploy.described import named_network
    from mobileone_ext.deploy.quantization import Options
    from mobileone_ext.deploy.quantization.quantize import check_name, quantize

    if args.out:
        check_name(args.out)  # where the arguments are in another order, the network would be said to be missing
    config, network = named_network(args)
    options = Options(
        per_channel=not args.per_tensor,
        equalize=not args.no_equalize,
        balance=args.balance,
        absorb_bias=args.absorb_bias,
        correct_bias=not args.no_bias_correction,
        compensate=not args.round_to_nearest,
        ranges=args.ranges,
        keep=tuple(args.keep),
        weight_bits=args.weight_bits,
    )
    quantize(
        network,
        args.out,
        config=config,
        photos=args.images,
        image_size=args.size,
        normalize=args.normalize,
        softmax=args.softmax,
        opset=args.opset,
        options=options,
        num_images=args.num_images,
        ema=args.ema,
        trust=args.trust_checkpoint,
        sensitivity=args.sensitivity,
        evaluate=args.evaluate or args.steps,
        steps=args.steps,
        report=args.report,
        prepare=args.prepare,
        preround=args.preround_steps or (quantization.PREROUND_STEPS[0] if args.preround else None),
    )
    cli.say_written(args.report)


if __name__ == '__main__':
    cli.run(main)
