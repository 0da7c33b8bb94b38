"""Draw what a run will do: ``python tools/plot_recipe.py configs/mobileone_s2_8xb32.py``.

Learning rate, weight decay by group, EMA decay, image size and augmentation
strength over the epochs, and augmented training images of each stage.
"""

from pathlib import Path

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    cli.add_config_arguments(parser)
    parser.add_argument(
        '--out', type=Path, help='the picture, by suffix png, jpg, pdf .. (work_dirs/CONFIG_recipe.png)'
    )
    return parser.parse_args()


def main():
    args = parse_args()
    config = cli.load_config(args.config, args.cfg_options)
    from mobileone_ext.engine.plot_recipe import draw, preview, summary
    from mobileone_ext.files import check_distinct, check_writable, in_work_dirs

    out = args.out or in_work_dirs(f'{Path(args.config).stem}_recipe.png')
    check_writable(out)
    check_distinct(out, args.config)
    recipe = preview(config)
    if recipe.stand_in:
        print(f'{recipe.stand_in}: a photograph stands in for the training images')
    print('\n'.join(summary(recipe)))
    draw(recipe, args.config, out)
    cli.say_written(out)


if __name__ == '__main__':
    cli.run(main)
