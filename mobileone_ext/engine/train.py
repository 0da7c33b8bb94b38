"""What tools/train.py does: options into the config, checks, resuming, training."""

import re
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..checkpoints.training import read_training_checkpoint
from ..config import building, require_data
from ..data.check import prepare_data, read_by_files, say
from ..data.classes import LOADERS, annotation_file, classes_in, scanned_folder
from ..data.nested import datasets_of, innermost
from ..files import CONFIG_SUFFIXES, suffix_of
from ..recipe.progress import ProgressHook
from ..recipe.run import keeps_average
from ..text import abbreviate, printable
from .processes import end_with_parent, is_first, one_writer
from .runner import Runner


def use_work_dir(config: Config, work_dir: str | None, task: str = '') -> None:
    """Set ``config.work_dir``: the option, else the config's, else ``work_dirs/CONFIG/task``.

    Of a config that a checkpoint had, CONFIG is the folder of that.
    """
    source = Path(config.filename).absolute()
    name = source.stem if suffix_of(source) in CONFIG_SUFFIXES else source.parent.name
    config.work_dir = work_dir or config.get('work_dir') or str(Path('work_dirs', name, task))


def use_amp(config: Config) -> None:
    """Train in mixed precision, for which mmengine needs a GPU."""
    config.optim_wrapper.type = 'AmpOptimWrapper'
    config.optim_wrapper.setdefault('loss_scale', 'dynamic')


def use_scaled_lr(config: Config) -> None:
    """Scale the learning rate by (GPUs x batch size) / the config's base batch size."""
    if 'auto_scale_lr' not in config:
        raise ValueError('--auto-scale-lr: the config has no auto_scale_lr=dict(base_batch_size=...) to scale from')
    config.auto_scale_lr.enable = True


def use_accumulation(config: Config, batches: int) -> None:
    """Step the optimizer once in so many ``batches``; the moving average follows, and so does a scaled lr."""
    config.optim_wrapper.accumulative_counts = batches
    for hook in [*(config.get('custom_hooks') or []), *(config.get('default_hooks') or {}).values()]:
        if keeps_average(hook):
            hook['interval'] = batches * hook.get('interval', 1)
    if 'auto_scale_lr' in config:
        config.auto_scale_lr.base_batch_size /= batches


def use_compile(config: Config, mode: str = 'default') -> None:
    """Compile the backbone by a mode of ``torch.compile``; the first step of each image size takes a minute or more."""
    config.custom_hooks = [*config.get('custom_hooks', []), dict(type='mobileone_ext.CompileHook', mode=mode)]


def skip_validation(config: Config) -> None:
    config.val_cfg = config.val_dataloader = config.val_evaluator = None


def use_data(config: Config, root: str) -> None:
    """Let every data set of the config lie below ``root``.

    Raises:
        ValueError: for a loader whose data set has no ``data_root``.
    """
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if not config.get(loader):
            continue
        inside = [dataset for dataset, _ in datasets_of(config, loader) if 'data_root' in dataset]
        if not inside:
            raise ValueError(f'--data {root}: {loader} has no data set with a data_root; set it with --cfg-options')
        for dataset in inside:
            dataset['data_root'] = root


def use_classes_of_data(config: Config) -> None:
    """Let the training data say which classes there are, and the head have so many; a line says which.

    Data sets that mmpretrain binds to classes of their own (``ImageNet``) are read by folders or lists alone.

    Raises:
        OSError, ValueError: for data that is not there or names no classes, or a model whose head has no
            ``num_classes``.
    """
    require_data(config, 'train_dataloader')
    train, *others = (list(innermost(config[name]['dataset'])) for name in LOADERS if config.get(name))
    for dataset in (*train, *chain(*others)):
        read_by_files(dataset)
    listed = [classes_in(dataset) for dataset in train]
    by_folder = all(scanned_folder(dataset) for dataset in train)
    names = sorted(set().union(*listed)) if by_folder else list(max(listed, key=len))
    for dataset in (*train, *chain(*others)):
        dataset.pop('classes', None)
        (dataset.get('metainfo') or {}).pop('classes', None)
    for dataset in train:
        dataset['metainfo'] = dict(dataset.get('metainfo') or {}, classes=names)
    head = next((part for part in (config.model.get('head'), config.model) if 'num_classes' in (part or {})), None)
    if head is None:
        raise ValueError('--classes-from-data: model.head has no num_classes to set')
    before = head['num_classes']
    for part in (config.model, config.get('val_evaluator'), config.get('test_evaluator')):
        _recount(part, before, len(names))
    place = scanned_folder(train[0]) or annotation_file(train[0]) or train[0]['type']
    say(f'{len(names)} classes of {place}: {printable(abbreviate(names, 10))}')


def _recount(value: Any, before: int, now: int) -> None:
    """Set every ``num_classes`` of ``before`` in a part of a config to ``now``, but for a teacher's."""
    if isinstance(value, dict):
        if value.get('num_classes') == before:
            value['num_classes'] = now
        value = [inner for key, inner in value.items() if key != 'teacher']
    for inner in value if isinstance(value, list | tuple) else ():
        _recount(inner, before, now)


def saved_checkpoints(work_dir: str | Path) -> Iterator[Path]:
    """The periodic checkpoints in ``work_dir``, newest first."""
    numbered = {path: re.fullmatch(r'(?:epoch|iter)_(\d+)\.pth', path.name) for path in Path(work_dir).glob('*.pth')}
    return iter(sorted((p for p in numbered if numbered[p]), key=lambda p: -int(numbered[p].group(1))))


def latest_checkpoint(work_dir: str | Path, without_digest: bool = False) -> tuple[Path, dict] | None:
    """The newest checkpoint in ``work_dir`` that is whole, and what is in it; None if there is none at all.

    Broken ones are named and passed over.

    Args:
        without_digest: see :func:`mobileone_ext.checkpoints.training.read_training_checkpoint`.

    Raises:
        ValueError: if all are broken.
    """
    broken = 0
    for path in saved_checkpoints(work_dir):
        try:
            return path, read_training_checkpoint(path, without_digest)
        except (ValueError, OSError) as error:
            print(f'passed over: {error}')
            broken += 1
    if broken:
        raise ValueError(f'{work_dir}: none of its {broken} checkpoints can be resumed from')
    return None


def train(
    config: Config, progress: str | Path | None = None, resume: str | Path | bool = False, without_digest: bool = False
) -> Runner:
    """Check the data and train; the runner comes back with the trained model.

    Args:
        progress: a file that :class:`~mobileone_ext.recipe.progress.ProgressHook` writes meanwhile.
        resume: the checkpoint to go on from; True for the work dir's newest one, if there is any.
        without_digest: see :func:`mobileone_ext.checkpoints.training.read_training_checkpoint`.

    Raises:
        ValueError: for missing data, a work dir that another process writes to, a checkpoint that the run cannot go
            on from, or a work dir that holds another run's checkpoints while nothing is resumed.
    """
    launcher = config.get('launcher', 'none')
    if launcher == 'pytorch':
        end_with_parent()
    checkpoint = prepare_resume(config, resume, without_digest)
    require_data(config, 'train_dataloader')
    prepare_data(config, 'train_dataloader', 'val_dataloader')
    with one_writer(config.work_dir, 'tools/train.py') if is_first(launcher) else nullcontext():
        if checkpoint is None and next(saved_checkpoints(config.work_dir), None):
            raise ValueError(
                f'{config.work_dir}: holds checkpoints of an earlier run; '
                '--resume goes on with it, --work-dir names another folder'
            )
        with building(config.filename or 'the config'):
            runner = Runner.from_cfg(config)
        runner.checkpoint = checkpoint
        if progress:
            runner.register_hook(ProgressHook(progress))
        runner.train()
        return runner


def prepare_resume(config: Config, resume: str | Path | bool = False, without_digest: bool = False) -> dict | None:
    """Let ``config`` go on from ``resume`` (see :func:`train`), with its seed unless it sets one; what is in there.

    None where it starts anew: nothing is to be resumed, or the work dir has no checkpoints. mmengine adopts the seed
    too late for the data order.
    """
    source = resume or (config.get('resume') and (config.get('load_from') or True))
    if not source:
        return None
    if source is True:
        source, checkpoint = latest_checkpoint(config.work_dir, without_digest) or (None, None)
    else:
        checkpoint = read_training_checkpoint(source, without_digest)
    config.resume = checkpoint is not None
    if checkpoint is not None:
        config.load_from = str(source)
        if config.setdefault('randomness', {}).get('seed') is None:
            config.randomness.seed = checkpoint['meta'].get('seed')
    return checkpoint
