"""From a folder of photos to a network with names: ``python tools/finetune.py PHOTOS``.

PHOTOS holds a folder for each class, or train/ and val/ with these; or it is a CSV file of file,label.
Writes config.py, the trained and fused network and report.html into the work dir.
"""

import argparse
import sys

from mobileone_ext import cli


def parse_args():
    from mobileone_ext.engine.finetuning.plan import CHOICES, TAKES

    parser = cli.Parser(
        description=__doc__,
        argument_default=argparse.SUPPRESS,  # what is not given stays out: the defaults are engine.finetune.Options'
    )
    parser.add_argument('photos', metavar='PHOTOS', help='a folder or a CSV file')
    parser.add_argument(
        '--weights',
        metavar='NAME|FILE|URL',
        help="to start from (Apple's fused S0, under Apple's license; convert_checkpoint --list shows the others and "
        'theirs); none: random weights',
    )
    parser.add_argument('--arch', choices=CHOICES['arch'], help='(that of the weights, or s0)')
    parser.add_argument('--epochs', type=TAKES['epochs'], metavar='N', help='(20)')
    parser.add_argument('--image-size', '--size', dest='size', type=TAKES['size'], metavar='PX', help='in pixels (224)')
    parser.add_argument(
        '--fit',
        choices=CHOICES['fit'],
        help='how photos get their size: the middle cut out, all of it with a border, or squashed (crop)',
    )
    parser.add_argument('--batch-size', type=TAKES['batch_size'], metavar='N', help='(32, less for few photos)')
    parser.add_argument('--lr', type=TAKES['lr'], help="the backbone's; the head's is ten times as high")
    parser.add_argument('--val', metavar='DIR|FRACTION', help='photos to measure on, or how many to set aside (0.2)')
    parser.add_argument(
        '--precision',
        type=TAKES['precision'],
        metavar='P',
        help='of answers; below its score a photo is unknown (0.95)',
    )
    parser.add_argument('--others', metavar='DIR', help='photos of none of the classes, for the same threshold')
    parser.add_argument('--seed', type=TAKES['seed'], metavar='N', help='of split, head and order (0)')
    parser.add_argument(
        '--freeze',
        type=TAKES['freeze'],
        metavar='STAGES',
        help='0 keeps the stem as it is, 3 also stages 1 .. 3, -1 nothing (-1)',
    )
    parser.add_argument('--work-dir', metavar='DIR', help='where all goes (work_dirs/finetune_NAME)')
    parser.add_argument(
        '--unfuse',
        choices=CHOICES['unfuse'],
        help='what fused weights get before training: nothing, batch norms (for batches of 32), or these and branches',
    )
    parser.add_argument('--branches', dest='unfuse', action='store_const', const='branches', help=argparse.SUPPRESS)
    parser.add_argument('--balance', action='store_true', help='show photos of rare classes more often')
    parser.add_argument(
        '--early-stop',
        type=TAKES['early_stop'],
        nargs='?',
        const=5,
        metavar='EPOCHS',
        help='end after so many without a better one (5)',
    )
    parser.add_argument('--dry-run', action='store_true', help='write the config and draw the recipe alone')
    parser.add_argument('--resume', action='store_true', help='go on with the run in the work dir')
    return parser.parse_args()


def main():
    given = vars(parse_args())
    from mobileone_ext.engine.finetune import finetune

    finetune(given.pop('photos'), command=cli.tool_command('finetune', *sys.argv[1:]), **given)


if __name__ == '__main__':
    cli.run(main)
