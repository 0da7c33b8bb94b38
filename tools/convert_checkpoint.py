"""Convert a MobileOne checkpoint: ``convert_checkpoint.py SRC DST --to mmpretrain|apple|timm|hub``.

SRC may have any of the layouts, branched or fused, in a torch or safetensors
file, wrapped or bare; which is found out. DST ends in .pth, .pt or .safetensors;
a model card is written beside it, DST.md. Of ``--to hub`` it is a folder that timm and
transformers open: weights, config.json and a card.
"""

import argparse
from pathlib import Path

from mobileone_ext import cli

OWN_NAME = 'mobileone_ext'


class ListPublished(argparse.Action):
    """Print the published weights that have names, and exit."""

    def __call__(self, parser, *_):
        from mobileone_ext.checkpoints.names import licenses, table

        print(f'{table()}\n\n{licenses()}')
        parser.exit()


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument('--list', action=ListPublished, nargs=0, help='show the published weights that have names')
    parser.add_argument(
        'source', metavar='SRC', help='a file, an address, or a name of --list, which tells licenses too'
    )
    parser.add_argument('destination', metavar='DST', type=Path, help='a file, or the folder of --to hub')
    parser.add_argument(
        '--to',
        required=True,
        choices=[OWN_NAME, 'mmpretrain', 'apple', 'timm', 'hub'],
        help=f"layout of DST; {OWN_NAME} and mmpretrain are the same keys; hub: Hugging Face's folder with timm's",
    )
    parser.add_argument(
        '--branched', action='store_true', help='give a fused SRC its branches back, to train on; needs --images'
    )
    parser.add_argument('--images', type=Path, metavar='DIR', help='images to calibrate the branches with')
    parser.add_argument('--num-images', type=cli.positive, default=128, help='how many of them (128)')
    parser.add_argument(
        '--image-size', type=cli.positive, default=224, help='their size, best the one to train with (224)'
    )
    parser.add_argument('--config', help='of --to hub, where SRC does not say which images it takes')
    parser.add_argument('--backbone-only', action='store_true', help='without the head; SRC need not have one')
    cli.add_weights_arguments(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    if args.branched and not args.images:
        raise ValueError('--branched: needs --images DIR, the statistics of the branches come from images')
    if args.to == 'hub' and args.backbone_only:
        raise ValueError("--backbone-only: a hub's folder holds a classifier")
    if args.config and args.to != 'hub':
        raise ValueError('--config: is for --to hub alone')
    options = dict(
        images=args.images if args.branched else None,
        num_images=args.num_images,
        image_size=args.image_size,
        ema=args.ema,
        trust=args.trust_checkpoint,
    )
    if args.to == 'hub':
        from mobileone_ext.deploy import hub

        original, weights = hub.convert(args.source, args.destination, args.config, **options)
        layout, card = 'timm', args.destination / hub.CARD
    else:
        from mobileone_ext.checkpoints.convert import card_path, convert, is_bare

        layout, card = 'mmpretrain' if args.to == OWN_NAME else args.to, card_path(args.destination)
        original, weights = convert(args.source, args.destination, layout, backbone_only=args.backbone_only, **options)
    print(f'{args.source}: {original.structure}, {original.layout} layout, from {original.source}')
    print(f'{args.destination}: {weights.structure}, {layout} layout, {len(weights.state):,} tensors')
    print(f'{card}: its model card')
    if args.to != 'hub' and is_bare(args.destination, layout) and original.said.values():
        print(
            f'tensors alone, as in files of {layout}: a .safetensors file also says what the network takes and answers'
        )


if __name__ == '__main__':
    cli.run(main)
