"""Convert a MobileOne checkpoint: ``convert_checkpoint.py SRC DST --to mmpretrain|apple|timm``.

SRC may have any of the layouts, branched or fused, in a torch or safetensors
file, wrapped or bare; which is found out. DST ends in .pth, .pt or .safetensors;
a model card is written beside it, DST.md.
"""

import argparse
from pathlib import Path

from mobileone_ext import cli

OWN_NAME = 'mobileone_ext'


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SRC', type=Path)
    parser.add_argument('destination', metavar='DST', type=Path)
    parser.add_argument(
        '--to',
        required=True,
        choices=[OWN_NAME, 'mmpretrain', 'apple', 'timm'],
        help=f'layout of DST; {OWN_NAME} and mmpretrain are the same keys',
    )
    parser.add_argument(
        '--branched', action='store_true', help='give a fused SRC its branches back, to train on; needs --images'
    )
    parser.add_argument('--images', type=Path, metavar='DIR', help='images to calibrate the branches with')
    parser.add_argument('--num-images', type=int, default=128, help='how many of them (128)')
    parser.add_argument('--image-size', type=int, default=224, help='their size, best the one to train with (224)')
    parser.add_argument('--backbone-only', action='store_true', help='without the head; SRC need not have one')
    parser.add_argument(
        '--ema', choices=['auto', 'on', 'off'], default='auto', help='which weights of a training checkpoint (auto)'
    )
    parser.add_argument('--trust-checkpoint', action='store_true', help='run the code that SRC holds')
    return parser.parse_args()


def main():
    args = parse_args()
    if args.branched and not args.images:
        raise ValueError('--branched: needs --images DIR, the statistics of the branches come from images')
    from mobileone_ext import convert
    from mobileone_ext.checkpoints import load_weights
    from mobileone_ext.files import check_writable, write_atomically
    from mobileone_ext.model_card import model_card

    convert.check_suffix(args.destination)
    check_writable(args.destination)
    original = weights = load_weights(args.source, args.ema, args.trust_checkpoint)
    if weights.num_classes is None and not args.backbone_only:
        raise ValueError(f'{args.source}: holds a backbone without a head; --backbone-only accepts it')
    if args.backbone_only:
        weights = convert.backbone_alone(weights)
    note = None
    if args.branched:
        from mobileone_ext.unfuse import calibration_batches

        batches = calibration_batches(args.images, args.num_images, args.image_size)
        weights = convert.with_branches(weights, batches)
        note = f'un-fused, calibrated with {args.num_images} images of {args.image_size} px'
    layout = 'mmpretrain' if args.to == OWN_NAME else args.to
    convert.write_weights(args.destination, weights, layout)
    card = args.destination.with_name(f'{args.destination.name}.md')
    with write_atomically(card) as part:
        part.write_text(model_card(args.destination, layout, weights, args.source, original, note))
    print(f'{args.source}: {original.structure}, {original.layout} layout, from {original.source}')
    print(f'{args.destination}: {weights.structure}, {layout} layout, {len(weights.state):,} tensors; card {card}')


if __name__ == '__main__':
    cli.run(main)
