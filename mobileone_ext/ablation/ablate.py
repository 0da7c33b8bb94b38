"""Run a study: train and fuse every variant with every seed, each in a folder and processes of its own.

    WORK_DIR/results.{csv,md,png,html}
    WORK_DIR/VARIANT/seedN.py
    WORK_DIR/VARIANT/seedN/{run.log,epoch_*.pth,fused.pth,measured.json,report.json}

A run with a report is finished and skipped; one without goes on from its newest checkpoint.
"""

import json
import pprint
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from mmengine.utils import get_git_hash

from ..config import check_config, override
from ..deploy.fuse import fuses
from ..engine.dry_run import dry_run
from ..engine.finetuning.curves import read_curves
from ..engine.processes import exiting_on_sigterm, one_writer, run_child
from ..engine.train import latest_checkpoint
from ..files import write_atomically, write_json
from ..text import with_progress
from .progress import Display, training_minutes
from .report import write_results
from .study import Study, folder_name

PROGRESS = 'progress.json'
TOOLS = ('-m', 'mobileone_ext')  # Python's arguments before a tool's name: whatever is installed


# Many runs, each evaluated once, at its end: no more on disk than going on needs.
_ONE_CHECKPOINT = {'default_hooks.checkpoint.max_keep_ckpts': 1, 'default_hooks.checkpoint.save_best': None}


class Run(NamedTuple):
    """One variant with one seed."""

    variant: str
    seed: int
    config_text: str
    folder: Path
    fuses: bool = True

    @property
    def report(self) -> Path:
        return self.folder / 'report.json'

    @property
    def config_file(self) -> Path:
        return self.folder.with_suffix('.py')  # beside the folder, where training writes a copy of its own


def plan(study: Study, base: Config, seeds: Sequence[int], work_dir: Path) -> list[Run]:
    """Every run of ``study``, its config made and checked.

    Raises:
        ValueError: naming the variant whose override doesn't fit, or the folder
            that holds a run of another config.
    """
    runs = []
    for variant, overrides in study.variants.items():
        try:
            config = override(base, overrides)
            check_config(config)
        except ValueError as error:
            raise ValueError(f'study {study.name}, variant {variant!r}: {error}') from error
        for seed in seeds:
            seeded = override(config, {'randomness': dict(config.get('randomness', {}), seed=seed), **_ONE_CHECKPOINT})
            folder = work_dir / folder_name(variant) / f'seed{seed}'
            run = Run(variant, seed, config_text(seeded), folder, fuses(seeded))
            if run.config_file.exists() and run.config_file.read_text(encoding='utf-8') != run.config_text:
                raise ValueError(f'{run.folder}: holds a run of another config; remove it or give another --work-dir')
            runs.append(run)
    return runs


def try_out(study: Study, runs: Sequence[Run], data: bool = True) -> None:
    """Build every variant that is still to run, and take a step with it; nothing is left of that.

    Args:
        data: also build the data sets, which says whether the photos are there; none is read.

    Raises:
        ValueError: naming the first variant that would fail.
    """
    variants = {run.variant: run for run in runs if not run.report.exists()}
    for variant, run in with_progress(variants.items(), 'trying out variants', len(variants)):
        name = f'study {study.name}, variant {variant!r}'
        try:
            with redirect_stdout(StringIO()):  # what its run will say, in its log
                dry_run(Config.fromstring(run.config_text, '.py'), name, data, step=True)
        except (ValueError, OSError) as error:
            raise ValueError(str(error) if str(error).startswith(name) else f'{name}: {error}') from error


def config_text(config: Config) -> str:
    """``config`` as a Python file without bases."""
    values = config.to_dict().items()
    return ''.join(f'{key} = {pprint.pformat(value, width=120, sort_dicts=False)}\n' for key, value in values)


def run_study(study: Study, base_name: str, runs: Sequence[Run], work_dir: Path, launcher: str, processes: int) -> int:
    """Do the unfinished ``runs``, and bring the results up to date after each.

    Args:
        launcher, processes: as in :func:`train_command`.

    Returns:
        How many runs failed; a failure does not keep the others from running.

    Raises:
        ValueError: if another process does a study in ``work_dir``.
    """
    failures: dict[Path, str] = {}
    num_classes = Config.fromstring(runs[0].config_text, '.py').get('model', {}).get('head', {}).get('num_classes')
    with one_writer(work_dir, 'tools/ablate.py'), exiting_on_sigterm():
        for number, run in enumerate(runs, 1):
            print(f'[{number}/{len(runs)}] {run.variant}, seed {run.seed}: ', end='', flush=True)
            if run.report.exists():
                print(f'finished before, top-1 {read_report(run)["top1_after"]:.2f}')
                continue
            print(f'{run.folder}/run.log', flush=True)
            reports = [read_report(done) for done in runs if done.report.exists()]
            finished = [60 * report['training_minutes'] for report in reports if report.get('training_minutes')]
            waiting = sum(not later.report.exists() for later in runs[number:])
            with Display(run.folder / PROGRESS, finished, waiting) as display:
                reason = execute(run, launcher, processes, meanwhile=display)
            if reason:
                failures[run.folder] = reason
                print(f'    failed: {reason}')
            else:
                print(f'    top-1 {read_report(run)["top1_after"]:.2f}')
            write_results(study, base_name, rows(runs, failures), work_dir, num_classes)
        write_results(study, base_name, rows(runs, failures), work_dir, num_classes)
    return len(failures)


def execute(
    run: Run, launcher: str, processes: int, validate: bool = False, meanwhile: Callable[[], None] | None = None
) -> str:
    """Train, fuse and measure; an empty string, or the reason of a failure.

    Args:
        launcher, processes: as in :func:`train_command`.
        validate: also while training, as the config says.
        meanwhile: called a few times a second while it trains, which keeps ``PROGRESS`` in the run's folder up to date.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(run.config_file) as part:
        part.write_text(run.config_text, encoding='utf-8')
    train = [*train_command(launcher, processes), run.config_file, '--work-dir', run.folder, '--resume']
    train += ['--progress', run.folder / PROGRESS] + ([] if validate else ['--no-validate'])
    reason = _call(train, run.folder / 'run.log', meanwhile)
    if reason:
        return reason
    checkpoint, state = latest_checkpoint(run.folder)
    report = run.folder / 'measured.json'
    reason = (_fuse if run.fuses else _test)(run, checkpoint, report)
    if not reason:
        measured = json.loads(report.read_text(encoding='utf-8'))
        curves = read_curves(state, 'accuracy/top1')
        ran = dict(training_minutes=training_minutes(checkpoint), curves=curves, commit=get_git_hash(digits=7))
        write_json(dict(measured, **ran), run.report)
    return reason


def _fuse(run: Run, checkpoint: Path, report: Path) -> str:
    fuse = [sys.executable, *TOOLS, 'reparam', run.config_file, checkpoint, run.folder / 'fused.pth']
    # A prediction that flips by rounding is a column of the results here, no reason to lose the run.
    return _call([*fuse, '--report', report, '--max-flips', 'any'], run.folder / 'run.log')


def _test(run: Run, checkpoint: Path, out: Path) -> str:
    """Measure a network that has nothing to fuse; ``out`` has what is known of it."""
    command = [sys.executable, *TOOLS, 'test', run.config_file, checkpoint, '--out', out]
    reason = _call([*command, '--work-dir', run.folder / 'test'], run.folder / 'run.log')
    if not reason:
        metrics = json.loads(out.read_text(encoding='utf-8'))
        report = dict(top1_after=metrics['accuracy/top1'], num_images=metrics['num_images'])
        if 'accuracy/top5' in metrics:
            report['top5_after'] = metrics['accuracy/top5']
        write_json(report, out)
    return reason


def train_command(launcher: str, processes: int) -> list[str]:
    """How to start tools/train.py: ``launcher`` none, pytorch or slurm, with so many ``processes``."""
    start = {
        'none': [sys.executable],
        'pytorch': [sys.executable, '-m', 'mobileone_ext.engine.launch', f'--nproc_per_node={processes}'],
        'slurm': ['srun', f'--ntasks={processes}', sys.executable],
    }
    return [*start[launcher], *TOOLS, 'train', '--launcher', launcher]


def _call(command: Sequence, log: Path, meanwhile: Callable[[], None] | None = None) -> str:
    """Run ``command`` with its output appended to ``log``; an empty string, or why it failed."""
    with open(log, 'a', encoding='utf-8') as file:
        file.write(f'$ {" ".join(map(str, command))}\n')
        file.flush()
        code = run_child(command, meanwhile, stdout=file, stderr=subprocess.STDOUT)
    if code == 0:
        return ''
    if code < 0:
        return f'killed by signal {-code}'
    lines = [line.strip() for line in log.read_text(encoding='utf-8', errors='replace').splitlines() if line.strip()]
    errors = [line[len('error: ') :] for line in lines if line.startswith('error: ')]
    return errors[-1] if errors else lines[-1]


def rows(runs: Sequence[Run], failures: dict[Path, str]) -> list[dict]:
    """A row of the results for each run."""

    def outcome(run: Run) -> dict:
        if run.report.exists():
            return dict(status='done', **read_report(run))
        reason = failures.get(run.folder)
        return dict(status='failed', reason=reason) if reason else dict(status='not run')

    return [dict(variant=run.variant, seed=run.seed, **outcome(run)) for run in runs]


def read_report(run: Run) -> dict:
    return json.loads(run.report.read_text(encoding='utf-8'))
