"""Trains the tiny digits in a process of its own, which kills itself (SIGKILL) at a named moment.

Nothing in the package knows of this: a moment is a function of the package, of mmengine or of torch, wrapped here.
"""

import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path

import ranks
import torch
from conftest import TINY, data_options
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(owner, name: str, time: int, when: str = 'before', only: Callable = lambda *args: True) -> Callable:
    """A moment: before or after the ``time``-th call of ``owner.name`` whose arguments ``only`` takes."""

    def arm() -> None:
        original, calls = getattr(owner, name), []

        def wrapped(*args, **kwargs):
            if only(*args):
                calls.append(args)
                if len(calls) == time and when == 'before':
                    kill()
            result = original(*args, **kwargs)
            if len(calls) == time and only(*args):
                kill()
            return result

        setattr(owner, name, wrapped)

    return arm


def in_the_write(of: str, time: int) -> Callable:
    """A moment: half of the file whose name begins with ``of`` is written, for the ``time``-th time."""

    def arm() -> None:
        from mobileone_ext.files import write_atomically
        from mobileone_ext.recipe.checkpointing import AtomicBackend

        original, calls = AtomicBackend.put, []

        def put(self, obj, filepath):
            if Path(filepath).name.startswith(of):
                calls.append(filepath)
                if len(calls) == time:
                    with write_atomically(filepath) as part:
                        part.write_bytes(bytes(obj)[: len(obj) // 2])
                        kill()
            original(self, obj, filepath)

        AtomicBackend.put = put

    return arm


def named(start: str, place: int = 0) -> Callable:
    """Takes calls whose argument at ``place`` is a path with a name that begins so."""
    return lambda *args: Path(args[place]).name.startswith(start) and str(args[place]).endswith('.pth')


def moments() -> dict[str, Callable]:
    """Arms by the name of the moment; the run has four epochs of two steps, each validated."""
    from mmengine.hooks import EMAHook
    from mmengine.runner import ValLoop

    from mobileone_ext.engine.runner import Runner
    from mobileone_ext.recipe.checkpointing import SafeCheckpointHook
    from mobileone_ext.recipe.curriculum import CurriculumHook

    # An epoch's checkpoint is written twice: after training (1, 3, 5, ..) and after validation (2, 4, 6, ..).
    return {
        'before they meet': at(torch.distributed, 'init_process_group', 1),
        'when they have met': at(torch.distributed, 'init_process_group', 1, 'after'),
        'before the first step': at(Runner, 'load_or_resume', 1),
        'in the first write of all': in_the_write('epoch_', 1),
        'in the write': in_the_write('epoch_3', 1),
        'written, not yet in place': at(os, 'replace', 5, only=named('epoch_', 1)),
        'between write and removal': at(os, 'replace', 5, 'after', only=named('epoch_', 1)),
        'in the removal': at(Path, 'unlink', 1, only=named('epoch_')),
        'after the removal': at(Path, 'unlink', 1, 'after', only=named('epoch_')),
        'between save and validation': at(ValLoop, 'run', 3),
        'in the validation': at(ValLoop, 'run_iter', 3),
        'validated, before it is written again': in_the_write('epoch_', 6),
        'validated and written again': at(os, 'replace', 6, 'after', only=named('epoch_', 1)),
        'while best is written': in_the_write('best_', 1),
        'between best and the rest': at(os, 'replace', 2, 'after', only=named('best_', 1)),
        'before the old best is removed': at(Path, 'unlink', 1, only=named('best_')),
        'in the moving average': at(EMAHook, 'after_train_iter', 6),
        "at a stage's change": at(CurriculumHook, 'before_train_epoch', 3, 'after'),
        'in the optimizer step': at(torch.optim.SGD, 'step', 6),
        "at the loader's start": at(torch.utils.data.DataLoader, '__iter__', 5),
        'saved for the last time, not validated': at(ValLoop, 'run', 4),
        'at the end of training': at(SafeCheckpointHook, 'after_train', 1),
    }


@HOOKS.register_module()
class Remembers(Hook):
    """A hook of one's own whose memory changes the weights: twice it lowers the lr, of how it went and how often."""

    def __init__(self):
        self.rank = None

    def before_train(self, runner):
        self.epochs, self.lowered, self.scores, self.mean = 0, False, [], torch.zeros(())
        self.rank = int(os.environ['RANK'])
        self.newest, self.by_label = deque(maxlen=3), Counter()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.mean += outputs['loss'].detach() / 10  # another one on each process
        self.newest.append(runner.iter)
        self.by_label.update(int(sample.gt_label) for sample in data_batch['data_samples'])

    def after_train_epoch(self, runner):
        self.epochs += 1
        if self.epochs == 3:
            runner.optim_wrapper.param_groups[0]['lr'] *= 0.5

    def after_val_epoch(self, runner, metrics=None):
        self.scores.append(metrics['accuracy/top1'])
        if not self.lowered and len(self.scores) == 2:
            runner.optim_wrapper.param_groups[0]['lr'] *= 0.5
            self.lowered = True


def _train(
    work_dir: str,
    digits: str,
    options: dict,
    moment: str | None,
    killed: int,
    hooks: list[dict],
    by_epoch: bool,
    accumulate: int,
) -> None:
    import contextlib

    from mobileone_ext.engine import train as training

    config = config_of(work_dir, digits, options, hooks, by_epoch, accumulate)
    if os.environ['WORLD_SIZE'] != '1':
        config.launcher = 'pytorch'
        config.train_dataloader.batch_size = 22
    with open(os.devnull, 'w') as sink, contextlib.redirect_stdout(sink):
        if moment and os.environ['RANK'] == str(killed):
            moments()[moment]()
        training.train(config, resume=True)


def config_of(
    work_dir: str, digits: str, options: dict, hooks: Sequence[dict] = (), by_epoch: bool = True, accumulate: int = 1
):
    """The config of the run, for one process."""
    from mobileone_ext import cli
    from mobileone_ext.engine import train as training

    pairs = dict(option.split('=') for option in data_options(digits)[:3])
    config = cli.load_config(TINY, pairs)
    for loader, step in (('train_dataloader', 16), ('val_dataloader', 6)):  # some of each class
        config[loader].update(num_workers=0, persistent_workers=False, batch_size=45)
        if [*Path(digits, 'train').glob('*.tar')]:
            config[loader].dataset.type = 'mobileone_ext.Shards'
        config[loader].dataset.indices = list(range(0, 1437 if step == 16 else 360, step))
    config.custom_hooks[0].momentum = 0.5
    config.custom_hooks.append(
        dict(type='mobileone_ext.CurriculumHook', stages=[dict(epoch=0, size=16), dict(epoch=2, size=32)])
    )
    config.custom_hooks.extend(hooks)
    config.work_dir, config.randomness.seed = work_dir, 3
    config.default_hooks.checkpoint.update(options)
    if accumulate > 1:
        training.use_accumulation(config, accumulate)
    if not by_epoch:  # validates and saves within its one epoch
        del config.custom_hooks[1]  # the curriculum
        config.train_cfg = dict(by_epoch=False, max_iters=8, val_interval=2)
        config.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
        config.param_scheduler = [dict(type='CosineAnnealingLR', T_max=8, by_epoch=False)]
        config.default_hooks.checkpoint.update(by_epoch=False, interval=2)
    return config


def train(
    work_dir: Path,
    digits: Path,
    options: dict,
    moment: str | None = None,
    processes: int = 1,
    killed: int = 0,
    hooks: Sequence[dict] = (),
    by_epoch: bool = True,
    accumulate: int = 1,
) -> list[int]:
    """Start or resume a run in processes of its own, one of which, ``killed``, ends at a moment.

    Their exit codes, -9 of those that were killed; a launcher kills the others.
    """
    arguments = str(work_dir), str(digits), options, moment, killed, list(hooks), by_epoch, accumulate
    return ranks.run(_train, *arguments, processes=processes)
