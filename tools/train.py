"""Train a MobileOne: ``python tools/train.py configs/mobileone_s0_8xb32.py``."""

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    cli.add_config_arguments(parser)
    parser.add_argument('--epochs', type=cli.positive, metavar='N', help='train so long; the schedule follows')
    parser.add_argument('--lr', type=cli.positive_number, help='the learning rate of this run, as it is')
    parser.add_argument('--batch-size', type=cli.positive, metavar='N', help='images a step and process')
    parser.add_argument('--data', metavar='ROOT', help='where the data lies, instead of every data_root of the config')
    parser.add_argument(
        '--classes-from-data',
        action='store_true',
        help='the classes are those of the training data (its folders or list), and the head has so many',
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='build all but the images, save and load a checkpoint in memory (with --resume: go on from it), stop',
    )
    parser.add_argument('--work-dir', help='where logs and checkpoints go (work_dirs/CONFIG)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='latest',
        metavar='CKPT',
        help="go on from CKPT, or from the work dir's newest checkpoint; starts anew if there is none",
    )
    parser.add_argument(
        '--without-digest',
        action='store_true',
        help='resume also from a checkpoint that was edited, or was written without a digest (plain data all the same)',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision (needs a GPU)')
    parser.add_argument('--auto-scale-lr', action='store_true', help="scale lr to this run's total batch size")
    parser.add_argument('--accumulate', type=cli.positive, default=1, metavar='N', help='step once in N batches (1)')
    parser.add_argument(
        '--compile',
        nargs='?',
        const='default',
        choices=('default', 'reduce-overhead', 'max-autotune'),
        help='torch.compile the backbone; reduce-overhead: as CUDA graphs on a GPU',
    )
    parser.add_argument(
        '--no-channels-last', action='store_true', help='keep the NCHW memory layout (a seed draws other weights in it)'
    )
    parser.add_argument('--no-validate', action='store_true', help='do not validate while training')
    parser.add_argument('--seed', type=cli.count, help='seed of weights, data order and augmentation')
    parser.add_argument('--deterministic', action='store_true', help='deterministic algorithms alone (slower)')
    parser.add_argument('--progress', metavar='JSON', help='write epoch, loss and speed to this file, once a second')
    cli.add_launcher_argument(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    if args.without_digest and not args.resume:
        raise ValueError('--without-digest belongs to --resume')
    if args.lr and args.auto_scale_lr:
        raise ValueError("--lr is the learning rate as it is, --auto-scale-lr scales the config's: give one of them")
    plain = {
        'train_cfg.max_epochs': args.epochs,
        'optim_wrapper.optimizer.lr': args.lr,
        'train_dataloader.batch_size': args.batch_size,
    }
    config = cli.load_config(args.config, {**args.cfg_options, **{k: v for k, v in plain.items() if v is not None}})
    from mobileone_ext.engine import train as training
    from mobileone_ext.recipe.schedule import misfits

    if args.lr and config.get('auto_scale_lr'):
        config.auto_scale_lr.enable = False
    if args.data:
        training.use_data(config, args.data)
    if args.classes_from_data:
        training.use_classes_of_data(config)

    training.use_work_dir(config, args.work_dir)
    config.launcher = args.launcher
    if args.amp:
        training.use_amp(config)
    if args.auto_scale_lr:
        training.use_scaled_lr(config)
    if args.accumulate != 1:
        training.use_accumulation(config, args.accumulate)
    if args.compile:
        training.use_compile(config, args.compile)
    if args.no_channels_last:
        config.default_hooks.pop('channels_last', None)
    if args.no_validate:
        training.skip_validation(config)
    if args.seed is not None:
        config.randomness.seed = args.seed
    if args.deterministic:
        config.randomness.deterministic = True
    for phrase in misfits(config):
        print(f'note: {phrase}; --epochs N scales a schedule')
    resume = {}
    if args.resume:
        resume = dict(resume=True if args.resume == 'latest' else args.resume, without_digest=args.without_digest)
    if args.dry_run:
        from mobileone_ext.engine.dry_run import describe, dry_run, missing_data

        runner = dry_run(config, args.config, checkpoint=training.prepare_resume(config, **resume))
        missing = missing_data(config)
        print(describe(runner))
        if missing:
            print(f'note: {missing}')
        return
    training.train(config, **({'progress': args.progress} if args.progress else {}), **resume)


if __name__ == '__main__':
    cli.run(main)
