"""mmengine's Runner with a console for people, and CPU processes for those without a GPU."""

import logging

import torch
from mmengine.logging import MMLogger
from mmengine.runner import BaseLoop
from mmengine.runner import Runner as _Runner

from ..checkpoints.load import load_strict, load_weights
from ..recipe.seeding import number_draws
from ..recipe.wrapper import unwrap
from .branches import give_branches

# Lines of mmengine that say nothing to the person at the console; the log file has them.
_NOISE = (
    'Distributed training is not used',
    'FileClient',
    'HardDiskBackend',
    'paramwise_options',
    'Checkpoints will be saved',
    'Exp name',
    'previous best checkpoint',
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
    """

    def load_or_resume(self) -> None:
        if self._resume or self._load_from is None or self._has_loaded:
            return super().load_or_resume()
        weights = load_weights(self._load_from)
        model = unwrap(self.model)
        source = f'{self._load_from}: {weights.structure}, {weights.layout} layout, from {weights.source}'
        new_head = weights.num_classes != model.head.num_classes
        if weights.form == 'fused' and not model.backbone.deploy:
            weights, count = give_branches(
                self.cfg.model, model, weights, self._load_from, self.train_dataloader.dataset
            )
            source += f'; given branches, with the statistics of {count} training images'
        load_strict(model, weights, str(self._load_from), backbone_only=new_head)
        self.call_hook('after_load_checkpoint', checkpoint=dict(state_dict=model.state_dict()))
        self._has_loaded = True
        self.logger.info(source)
        if new_head:
            self.logger.info(
                f'the head is new, with {model.head.num_classes} classes; the file has {weights.num_classes}'
            )
        return None

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        if isinstance(loop, dict):
            # Here, as a loop that goes by iterations starts its workers when it is built.
            different = self._randomness_cfg.get('diff_rank_seed', False)
            self._train_dataloader = self.build_dataloader(self._train_dataloader, self.seed, different)
            number_draws(self._train_dataloader, self.seed)
        return super().build_train_loop(loop)

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(ConsoleFilter())
        return logger

    def setup_env(self, env_cfg: dict) -> None:
        if self.distributed and not torch.cuda.is_available():
            torch.distributed.init_process_group('gloo')
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg, model):
        if self.distributed and not torch.cuda.is_available() and model_wrapper_cfg is None:
            model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
        return super().wrap_model(model_wrapper_cfg, model)
