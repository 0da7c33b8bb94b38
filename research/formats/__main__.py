"""Every exported file against PyTorch: ``python -m research.formats CONFIG WEIGHTS OUT``.

Each format is exported in float32 and half, and measured on the config's test set. OUT gets the files, runs.csv and
table.md; what is in runs.csv is not measured again.
"""

from pathlib import Path

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    cli.add_config_arguments(parser)
    parser.add_argument('weights')
    parser.add_argument('out', type=Path)
    parser.add_argument('--suffixes', nargs='+', metavar='SUFFIX', help='some of the files, such as .tflite (all)')
    parser.add_argument(
        '--image-size',
        '--size',
        dest='size',
        type=int,
        default=224,
        help='height and width of the images in pixels (224)',
    )
    return parser.parse_args()


def main():
    args = parse_args()
    config = cli.load_config(args.config, args.cfg_options)
    from mobileone_ext.engine.train import use_work_dir
    from mobileone_ext.files import write_text
    from research.formats import study

    args.out.mkdir(parents=True, exist_ok=True)
    use_work_dir(config, str(args.out / 'log'), 'test')
    rows = study.measure_all(config, args.weights, args.out, args.suffixes or study.SUFFIXES, args.size)
    table = study.table(rows)
    write_text(table, args.out / 'table.md')
    print(table)


if __name__ == '__main__':
    cli.run(main)
