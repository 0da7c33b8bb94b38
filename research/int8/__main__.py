"""Int8 from eight sets of calibration photos: ``python -m research.int8 CONFIG WEIGHTS OWN OUTSIDE OUT``.

OWN has training photos in class folders, OUTSIDE photos of something else; measured on the config's test set. OUT gets
the int8 files, which are kept and not made again, rows.csv and table.md.
"""

from pathlib import Path

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    cli.add_config_arguments(parser)
    parser.add_argument('weights')
    parser.add_argument('own', type=Path)
    parser.add_argument('outside', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--weight-bits', type=int, default=7)
    parser.add_argument('--per-tensor', action='store_true')
    parser.add_argument('--sets', type=int, nargs='+', metavar='N', help='some of the eight, 0 .. 7 (all)')
    return parser.parse_args()


def main():
    args = parse_args()
    config = cli.load_config(args.config, args.cfg_options)
    from mobileone_ext.deploy.export import load_fused
    from mobileone_ext.deploy.quantization import Options
    from mobileone_ext.files import csv_text, write_text
    from research.int8 import study

    args.out.mkdir(parents=True, exist_ok=True)
    options = Options(per_channel=not args.per_tensor, weight_bits=args.weight_bits)
    model = load_fused(config, args.weights)
    names = list(study.SETS)
    names = names if args.sets is None else [names[number] for number in args.sets]
    files = study.quantize_all(config, args.weights, model, args.own, args.outside, options, args.out, names)
    rows = study.measure(config, args.weights, files, options)
    write_text(csv_text(rows, tuple(rows[0])), args.out / 'rows.csv')
    table = study.table(rows)
    write_text(table + '\n', args.out / 'table.md')
    print(table)


if __name__ == '__main__':
    cli.run(main)
