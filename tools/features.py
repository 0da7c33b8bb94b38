"""What a network makes of photos before its last layer, and which are alike: ``python tools/features.py PHOTOS``.

Writes the pooled features with paths and names of the photos' folders as npz.
"""

from pathlib import Path

from mobileone_ext import cli

NETWORK = 'apple/mobileone_s0-fused'


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument('photos', nargs='+', metavar='PHOTOS', help='image files or folders')
    parser.add_argument(
        '--network', default=NETWORK, help=f"a checkpoint, a run's folder, or published weights by name ({NETWORK})"
    )
    parser.add_argument('--config', help='of a network that does not say which images it takes')
    parser.add_argument('--out', metavar='FILE', help='(work_dirs/features_PHOTOS.npz)')
    parser.add_argument('--like', metavar='PHOTO', help='show the photos that are most like this one')
    parser.add_argument('--top', type=cli.positive, default=10, metavar='K', help='how many of them (10)')
    parser.add_argument(
        '--projector', type=cli.folder, metavar='DIR', help="also for TensorBoard's projector: tensorboard --logdir DIR"
    )
    return parser.parse_args()


def main():
    args = parse_args()
    from mobileone_ext import files
    from mobileone_ext.data.images import find_images
    from mobileone_ext.deploy import runtime
    from mobileone_ext.engine import features
    from mobileone_ext.text import printable, with_progress

    if args.network == NETWORK and runtime.is_run(args.photos[0]):
        raise ValueError(
            f"{args.photos[0]}: is a run's folder, not photos; --network {args.photos[0]} takes its network"
        )
    paths = find_images(args.photos)
    like = find_images([args.like]) if args.like else []
    out = args.out or files.in_work_dirs(f'features_{Path(args.photos[0]).resolve().name}.npz')
    if files.suffix_of(out) != '.npz':
        raise ValueError(f'{out}: features are written to *.npz')
    files.check_outputs([out], args.config, *paths, *like)
    skipped: list[str] = []
    shown = with_progress([*like, *paths], 'photos', len(like) + len(paths))
    found, values = features.features_of_photos(args.network, args.config, shown, skipped)
    if like and found[0] != like[0]:
        raise ValueError(skipped[0])
    own, others = slice(len(like)), slice(len(like), None)
    features.write_features(out, found[others], values[others])
    print(f'{printable(out)}: {values.shape[1]} features of {len(found[others])} photos')
    if args.projector:
        features.write_projector(Path(args.projector), found[others], values[others])
        print(f'tensorboard --logdir {args.projector}')
    for row, cosine in features.nearest(values[others], values[own][0], args.top) if like else ():
        print(f'  {cosine:.3f}  {printable(found[others][row])}')
    for message in skipped:
        print(f'skipped {printable(message)}')
    if paths.note:
        print(paths.note)


if __name__ == '__main__':
    cli.run(main)
