"""Resize a data set's photos once, for faster epochs: ``python tools/resize_dataset.py SRC DST --short-edge 292``."""

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument('source', metavar='SRC', help='folder of photos at any depth, with its annotation files')
    parser.add_argument('target', metavar='DST', help='folder to write; the same command goes on after a kill')
    parser.add_argument(
        '--short-edge', type=cli.whole(32, 4096), default=292, metavar='PX', help='of the photos written (%(default)s)'
    )
    parser.add_argument(
        '--quality', type=cli.whole(1, 100), default=90, help='of JPEG and WebP, 1 .. 100 (%(default)s)'
    )
    parser.add_argument('--processes', type=cli.positive, metavar='N', help='that work at a time (all cores)')
    parser.add_argument('--prune', action='store_true', help='remove from DST what it wrote and SRC has no more')
    return parser.parse_args()


def main():
    args = parse_args()
    from mobileone_ext.data import resize

    report = resize.resize_dataset(
        args.source, args.target, args.short_edge, args.quality, args.processes or resize.cores(), args.prune
    )
    resize.show(report)


if __name__ == '__main__':
    cli.run(main)
