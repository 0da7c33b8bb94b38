"""mmengine's Runner: strict and safe in what it reads, with a console for people, and CPU processes without a GPU."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, convert_sync_batchnorm, is_model_wrapper
from mmengine.registry import MODEL_WRAPPERS, OPTIMIZERS
from mmengine.runner import BaseLoop, CheckpointLoader, EpochBasedTrainLoop
from mmengine.runner import Runner as _Runner
from torch.utils.data import DataLoader

from .. import recipe  # noqa: F401  the hooks below
from ..checkpoints.load import class_names_in, read_checkpoint
from ..checkpoints.training import check_fits_run, is_sealed, read_training_checkpoint, step_as_built
from ..config import building, unknown_part
from ..data.check import check_loaders, leave_out_last_of_one
from ..data.classes import check_same
from ..data.flip import check_flips
from ..files import CONFIG_SUFFIXES, suffix_of
from ..recipe.checkpointing import described_run
from ..recipe.memory import Memory
from ..recipe.resuming import changed_step, expected_checkpoint
from ..recipe.run import end_workers, unwrap
from ..recipe.schedule import without_short_warmups
from ..recipe.seeding import number_draws
from ..text import nfc
from .evaluation import hand_on_logits, make_literal
from .processes import TiedWorker
from .start import start_from

# What every run has, whatever its config says of hooks; None in a config leaves one out.
_OWN_HOOKS = dict(
    checkpoint=dict(type='mobileone_ext.CheckpointHook', interval=1),
    plain_checkpoint=dict(type='mobileone_ext.PlainCheckpointHook'),
    stop_on_nan=dict(type='mobileone_ext.StopOnNanHook'),
)
_MMENGINE_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')

# Lines of mmengine that say nothing to the person at the console; the log file has them.
_NOISE = (
    'Distributed training is not used',
    'FileClient',
    'HardDiskBackend',
    'paramwise_options',
    'Checkpoints will be saved',
    'Exp name',
    'previous best checkpoint',
    'Resumed iteration number',  # gradients that no step has used yet are in the checkpoint
)


class ConsoleFilter(logging.Filter):
    """Lets one-line messages through; dumps of config, environment and hooks go to the file alone."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage().strip()
        if record.levelno >= logging.ERROR:
            return True
        return '\n' not in message and not any(noise in message for noise in _NOISE)


class Runner(_Runner):
    """A Runner whose console shows progress alone, and whose ranks may be CPU processes (gloo).

    ``load_from`` takes weights of any layout, by name or file, and loads them strictly; mmengine
    would pass over what does not fit. Fused ones get branches if the network has some.
    A head of another class count, or none, leaves the model's as it was initialized, and
    the console says so.

    ``resume`` takes a checkpoint that fits this run in every part, or raises ValueError. No file's code is run.
    """

    _built = count()
    _wrapper = None  # the config of what comes around the model
    checkpoint: dict | None = None  # what a run goes on from, until its hooks remember
    _add_config: Callable[[Config], None] | None = None
    memory: Memory | None = None

    def __init__(self, *args, experiment_name: str | None = None, cfg=None, **kwargs):
        # mmengine's loggers go by name and second: another run of this process would write to the files of the first.
        number = next(self._built)
        if number:
            file = getattr(cfg, 'filename', None)
            experiment_name = f'{experiment_name or (Path(file).stem if file else "run")}_{number}'
        super().__init__(*args, experiment_name=experiment_name, cfg=cfg, **kwargs)

    def train(self) -> torch.nn.Module:
        with reading_safely(), self._ending_workers('_train_loop', '_val_loop', '_test_loop'):
            return super().train()

    def val(self) -> dict:
        with self._ending_workers('_val_loop'):
            return super().val()

    def test(self) -> dict:
        with self._ending_workers('_test_loop'):
            return super().test()

    @contextmanager
    def _ending_workers(self, *loops: str) -> Iterator[None]:
        """Afterwards their loaders have no workers left; those of a training that this is a part of go on."""
        try:
            yield
        finally:
            for loop in loops:
                for name in ('dataloader', 'dataloader_iterator'):
                    end_workers(getattr(getattr(self, loop), name, None))

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        hooks = {**_OWN_HOOKS, **(hooks or {})}
        if isinstance(hooks['checkpoint'], dict) and hooks['checkpoint'].get('type') == 'CheckpointHook':
            hooks['checkpoint'] = dict(hooks['checkpoint'], type='mobileone_ext.CheckpointHook')
        super().register_default_hooks(
            {name: hook for name, hook in hooks.items() if hook is not None or name in _MMENGINE_HOOKS}
        )

    def resume(self, filename, *args, **kwargs) -> None:
        with building(str(filename), 'cannot be resumed from'):
            super().resume(filename, *args, **kwargs)
        loop = self.train_loop
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        done, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
        if done >= end:
            unit = 'epochs' if by_epoch else 'iterations'
            self.logger.info(f'{filename}: the run is finished: {done} of {end} {unit}, nothing is left to train')

    def load_checkpoint(self, filename, *args, **kwargs) -> dict:
        """The training checkpoint that :meth:`resume` goes on from, its weights loaded."""
        checkpoint = self.checkpoint = self.checkpoint or read_training_checkpoint(filename)
        check_same(self._classes, class_names_in(checkpoint), 'the training set', str(filename))
        max_epochs = self.max_epochs if isinstance(self.train_loop, EpochBasedTrainLoop) else None
        expected = expected_checkpoint(self)
        step_as_built(checkpoint, expected)
        check_fits_run(filename, checkpoint, expected, max_epochs)
        message = changed_step(checkpoint['meta'].get('run'), described_run(self), checkpoint['meta']['epoch'])
        if message:
            self.logger.warning(message)
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        unwrap(self.model).load_state_dict(checkpoint['state_dict'])
        return checkpoint

    @property
    def _classes(self) -> list[str] | None:
        """Names of the training set's classes, if it has any."""
        names = (getattr(self.train_dataloader.dataset, 'metainfo', None) or {}).get('classes')
        return names and [*map(nfc, names)]

    def loaders(self) -> dict[str, DataLoader]:
        """The data loaders that are built, by the names of their loops."""
        loops = dict(train=self._train_loop, val=self._val_loop, test=self._test_loop)
        return {name: loop.dataloader for name, loop in loops.items() if isinstance(loop, BaseLoop)}

    def load_or_resume(self) -> None:
        check_loaders(self.loaders(), self.cfg)
        if self._resume or self._load_from is None or self._has_loaded:
            return super().load_or_resume()
        model, dataset = unwrap(self.model), self.train_dataloader.dataset
        lines = start_from(self._load_from, model, self.cfg.model, dataset, self._classes)
        self.call_hook('after_load_checkpoint', checkpoint=dict(state_dict=model.state_dict()))
        self._has_loaded = True
        for line in lines:
            self.logger.info(line)
        return None

    @staticmethod
    def build_dataloader(*args, **kwargs):
        loader = _Runner.build_dataloader(*args, **kwargs)
        loader.worker_init_fn = TiedWorker(loader.worker_init_fn)
        return loader

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        if isinstance(loop, dict):
            # Here, as a loop that goes by iterations starts its workers when it is built.
            different = self._randomness_cfg.get('diff_rank_seed', False)
            with building('train_dataloader'):
                self._train_dataloader = self.build_dataloader(self._train_dataloader, self.seed, different)
            leave_out_last_of_one(self._train_dataloader, self.model)
            check_flips(self._train_dataloader, self.model)
            number_draws(self._train_dataloader, self.seed)
        with building('train_cfg'):
            return super().build_train_loop(loop)

    def build_param_scheduler(self, scheduler):
        if isinstance(scheduler, dict) and 'type' in scheduler:
            scheduler = [scheduler]
        if isinstance(scheduler, list) and all(isinstance(one, dict) for one in scheduler):
            scheduler = without_short_warmups(scheduler, len(self.train_dataloader))
        with building('param_scheduler'):
            return super().build_param_scheduler(scheduler)

    def build_optim_wrapper(self, optim_wrapper):
        if isinstance(optim_wrapper, dict):
            check_weight_decay(optim_wrapper)
            check_optimizer(optim_wrapper)
        with building('optim_wrapper'):
            return super().build_optim_wrapper(optim_wrapper)

    def _init_model_weights(self) -> None:
        with building('model.init_cfg'):
            super()._init_model_weights()

    def call_hook(self, fn_name: str, **kwargs) -> None:
        if fn_name == 'before_run':
            self._begin(fn_name, self.hooks)
        elif fn_name == 'before_train':  # the checkpoint's last: it makes up for a validation, which hooks remember
            self._begin(fn_name, [hook for hook in self.hooks if not isinstance(hook, CheckpointHook)])
            self._remember()
            self._begin(fn_name, [hook for hook in self.hooks if isinstance(hook, CheckpointHook)])
        else:
            if fn_name == 'before_save_checkpoint' and self.memory is not None:
                self._put_memory_into(kwargs['checkpoint'])
            super().call_hook(fn_name, **kwargs)
        if fn_name == 'before_train_iter':
            self._before_step()
        if self.memory is not None:
            self.memory.catch_up()

    def _before_step(self) -> None:
        if self._wrapper is not None and what_is_planned_by(self.model) != self._planned:
            self._maybe_compile('train_step')
        if self._add_config is not None:
            with building('visualizer'):  # its backends ask for their packages here
                self._add_config(self.cfg)
            self._add_config = None

    def build_visualizer(self, visualizer):
        """The visualizer, which is told the config when there is something to see: TensorBoard begins a run with it."""
        built = super().build_visualizer(visualizer)
        self._add_config, built.add_config = built.add_config, lambda config: None
        return built

    def _begin(self, fn_name: str, hooks: list[Hook]) -> None:
        for hook in hooks:  # before the first step what a hook refuses is a mistake of the config
            with building(type(hook).__name__, 'does not start'):
                getattr(hook, fn_name, lambda runner: None)(self)

    def _remember(self) -> None:
        """Begin the hooks' memory, with what a checkpoint has of it."""
        with building('hooks', 'their state_dict is no plain data'):
            self.memory = Memory(self.hooks, unwrap(self.model))
        if self.checkpoint is None:
            return
        checkpoint, self.checkpoint, filename = self.checkpoint, None, self._load_from
        meta, states = checkpoint['meta'], checkpoint.get('hooks') or [{}]
        with building(str(filename), 'cannot be resumed from'):
            went_on = self.memory.give_back(states, f'{filename}: cannot be resumed from: ', not is_sealed(checkpoint))
        if went_on:
            self.logger.info(f'hooks go on with what they remember: {", ".join(went_on)}')
        if meta.get('stopped') == self._hooks_as_text():
            self.train_loop.stop_training = True
            self.logger.info(
                f'{filename}: the run stopped early, at epoch {self.epoch}, iteration {self.iter}: nothing is left to '
                'train. With other hooks (custom_hooks) it goes on'
            )
        elif 'stopped' in meta:
            self.logger.info(f'{filename}: the run stopped early; its hooks were others, so it goes on')

    def _put_memory_into(self, checkpoint: dict) -> None:
        if 'optimizer' not in checkpoint:
            return  # no run goes on from it
        self.memory.put_into(checkpoint)
        if getattr(self.train_loop, 'stop_training', False):
            checkpoint['meta']['stopped'] = self._hooks_as_text()

    def _hooks_as_text(self) -> str:
        return str([self.cfg.get('default_hooks'), self.cfg.get('custom_hooks')])

    def build_evaluator(self, evaluator):
        evaluator = super().build_evaluator(evaluator)
        hand_on_logits(unwrap(self.model))
        for metric in evaluator.metrics:
            make_literal(metric)
        return evaluator

    def build_val_loop(self, loop):
        with building('val_dataloader, val_evaluator or val_cfg'):
            return super().build_val_loop(loop)

    def build_test_loop(self, loop):
        with building('test_dataloader, test_evaluator or test_cfg'):
            return super().build_test_loop(loop)

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(ConsoleFilter())
        return logger

    @master_only
    def dump_config(self) -> None:
        own = Path(self.cfg.filename or 'config.py')
        name = own.name if suffix_of(own) in CONFIG_SUFFIXES else f'{own.stem}.py'  # a checkpoint had it
        if own.resolve() == Path(self.work_dir, name).resolve():
            name = f'resolved_{name}'  # it lies in the work dir: keep it as written
        self.cfg.dump(Path(self.work_dir, name))

    def setup_env(self, env_cfg: dict) -> None:
        if self.distributed and not torch.cuda.is_available():
            torch.distributed.init_process_group('gloo')
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg, model):
        """``model`` where it trains; DistributedDataParallel comes around it just before the first step.

        That plans by the parameters that it finds, and the hooks have not been asked yet.
        """
        wrapper = dict(broadcast_buffers=False, find_unused_parameters=self.cfg.get('find_unused_parameters', False))
        wrapper = dict(model_wrapper_cfg or wrapper)
        kind = MODEL_WRAPPERS.get(wrapper.setdefault('type', 'MMDistributedDataParallel'))
        if not self.distributed or is_model_wrapper(model) or not issubclass(kind, MMDistributedDataParallel):
            return super().wrap_model(model_wrapper_cfg, model)
        on_gpu = torch.cuda.is_available()
        self._wrapper = dict(device_ids=[int(os.environ['LOCAL_RANK'])] if on_gpu else None, **wrapper)
        model = model.to(get_device())
        return convert_sync_batchnorm(model, self.cfg.sync_bn) if self.cfg.get('sync_bn') else model

    def _maybe_compile(self, target: str) -> None:
        """Called before the first step, and again when hooks have changed what was planned by."""
        if self._wrapper is not None:
            model = unwrap(self.model)
            self._planned = what_is_planned_by(model)
            self.model = MODEL_WRAPPERS.build(self._wrapper, default_args=dict(module=model))
        super()._maybe_compile(target)


def what_is_planned_by(model: torch.nn.Module) -> list[tuple]:
    """What DistributedDataParallel sorts gradients by: those that there are, and their strides.

    After a change it would mix them up, wait for some in vain, or leave some as different as the ranks' images are.
    """
    return [(id(parameter), parameter.requires_grad, parameter.stride()) for parameter in model.parameters()]


def check_weight_decay(optim_wrapper: dict) -> None:
    """Raise ValueError if factors of the weight decay are set, and none that they multiply."""
    factors = [key for key in optim_wrapper.get('paramwise_cfg') or {} if key.endswith('decay_mult')]
    optimizer = optim_wrapper.get('optimizer')
    if factors and isinstance(optimizer, dict) and optimizer.get('weight_decay') is None:
        raise ValueError(
            f'optim_wrapper.optimizer.weight_decay is missing: paramwise_cfg.{factors[0]} multiplies it; '
            'set it (0 for none), or replace paramwise_cfg (_delete_=True)'
        )


def check_optimizer(optim_wrapper: dict) -> None:
    """Raise ValueError for an optimizer that nobody has registered, where mmengine would call None."""
    kind = (optim_wrapper.get('optimizer') or {}).get('type')
    if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
        raise ValueError(f'optim_wrapper.optimizer: {unknown_part(kind, "optimizer")}')


@contextmanager
def reading_safely() -> Iterator[None]:
    """Let mmengine read checkpoints (``init_cfg=dict(type='Pretrained', ...)``) as this package does, for a while."""
    schemes = CheckpointLoader._schemes
    CheckpointLoader._schemes = {
        **schemes,
        **dict.fromkeys(('', 'http://', 'https://'), lambda filename, map_location=None: read_checkpoint(filename)),
    }
    try:
        yield
    finally:
        CheckpointLoader._schemes = schemes
