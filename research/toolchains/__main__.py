"""What --prepare and --preround are worth to others: ``python -m research.toolchains CONFIG WEIGHTS PHOTOS OUT``.

PHOTOS calibrate; measured on the config's test set. OUT gets rows.csv, a row as each quantizer finishes, and table.md;
rows that are there are kept. requirements-phone.txt has the quantizers but NNCF: ``pip install nncf``.
"""

from pathlib import Path

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    cli.add_config_arguments(parser)
    parser.add_argument('weights')
    parser.add_argument('photos')
    parser.add_argument('out', type=Path)
    parser.add_argument('--num-images', '--num-photos', dest='num_photos', type=cli.positive, default=100, metavar='N')
    parser.add_argument('--quantizers', nargs='+', metavar='NAME', help='some of them, by a part of their names (all)')
    parser.add_argument('--layers', action='store_true', help='instead: what each layer costs alone')
    parser.add_argument('--networks', nargs='+', metavar='NAME', help='raw, prepared, snapped (all)')
    return parser.parse_args()


def main():
    args = parse_args()
    config = cli.load_config(args.config, args.cfg_options)
    from mobileone_ext.files import write_text
    from research.toolchains import study

    if args.layers:
        return study.show_layers(config, args.weights, args.photos, args.num_photos, args.networks or ['prepared'])
    arms = study.arms(args.networks, args.quantizers)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = study.run(config, args.weights, args.photos, args.num_photos, arms, args.out / 'rows.csv')
    table = study.table(rows)
    write_text(table + '\n', args.out / 'table.md')
    print(table)


if __name__ == '__main__':
    cli.run(main)
