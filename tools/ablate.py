"""Run an ablation study: ``python tools/ablate.py configs/ablations/branches.py``.

Every variant is trained, fused and evaluated with every seed; finished runs are
skipped, an interrupted one goes on. The tables, the plot and the page lie in the work dir.
"""

from pathlib import Path

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    parser.add_argument('study', help='a study file, e.g. configs/ablations/branches.py, or the name of one that ships')
    parser.add_argument('--base', default='configs/mobileone_s0_digits.py', help='the config to vary (%(default)s)')
    parser.add_argument(
        '--seeds', type=cli.count, nargs='+', default=[0, 1, 2], help='one run a variant and seed (0 1 2)'
    )
    parser.add_argument('--variants', nargs='+', metavar='NAME', help='some of the variants of the study (all)')
    parser.add_argument('--data', metavar='DIR', help='where the data lie, as in tools/train.py')
    parser.add_argument(
        '--classes-from-data',
        action='store_true',
        help='the classes are those of the training data (its folders or list), and the head has so many',
    )
    parser.add_argument('--epochs', type=cli.positive, metavar='N', help='train so long; the schedule follows')
    parser.add_argument('--work-dir', help='where runs and results go (work_dirs/ablations/STUDY)')
    parser.add_argument(
        '--dry-run', action='store_true', help='try the runs out without their data, list them and stop'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none')
    parser.add_argument(
        '--processes', type=cli.positive, default=1, help='processes of the launcher, one a GPU (%(default)s)'
    )
    return parser.parse_args()


def main():
    args = parse_args()
    from mobileone_ext.ablation.ablate import plan, run_study, try_out
    from mobileone_ext.ablation.study import choose, overrides_label, read_study
    from mobileone_ext.config import find_file
    from mobileone_ext.engine.train import use_classes_of_data, use_data

    study = read_study(find_file(args.study, 'configs/ablations', 'study'))
    if args.variants:
        study = choose(study, args.variants)
    base = cli.load_config(args.base, {'train_cfg.max_epochs': args.epochs} if args.epochs else {})
    if args.data:
        use_data(base, args.data)
    if args.classes_from_data:
        use_classes_of_data(base)
    if len(set(args.seeds)) < len(args.seeds):
        raise ValueError(f'--seeds {args.seeds}: a seed is given twice')
    work_dir = Path(args.work_dir or Path('work_dirs/ablations', study.name))
    runs = plan(study, base, args.seeds, work_dir)
    try_out(study, runs, data=not args.dry_run)
    if args.dry_run:
        for run in runs:
            state = 'finished' if run.report.exists() else 'to run'
            print(f'{run.variant}, seed {run.seed}: {state}; {overrides_label(study.variants[run.variant])}')
        return 0
    failed = run_study(study, args.base, runs, work_dir, args.launcher, args.processes)
    print(f'{work_dir}/results.html, .md, .csv, .png')
    if failed:
        raise ValueError(f'{failed} of {len(runs)} runs failed; results.md says why')
    return 0


if __name__ == '__main__':
    cli.run(main)
