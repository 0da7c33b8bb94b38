"""Training checkpoints that are plain, written whole, and read without running code.

mmengine pickles its message hub, which torch >= 2.6 rightly refuses to read back.
Here a checkpoint holds nothing but containers, numbers, strings and tensors.
"""

import os
from typing import Any

import numpy as np
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from ..checkpoints.load import read_checkpoint
from ..files import write_atomically
from ..registry import HOOKS

_HISTORY = 'history_buffer'


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Turn a checkpoint into plain data before it is saved, and back after it is read."""

    priority = 'VERY_LOW'

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        for key in ('meta', 'message_hub', 'param_schedulers'):
            if key in checkpoint:
                checkpoint[key] = to_plain(checkpoint[key])

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        scalars = checkpoint.get('message_hub', {}).get('log_scalars', {})
        for name, value in scalars.items():
            scalars[name] = restore_history(value)


def to_plain(value: Any) -> Any:
    """``value`` as containers, numbers, strings and tensors alone.

    Raises:
        ValueError: for an object that has no such form.
    """
    if isinstance(value, np.generic):  # first: np.float64 is a float
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str, torch.Tensor)):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {to_plain(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_plain(item) for item in value)
    if isinstance(value, HistoryBuffer):
        history, counts = value.data
        return {_HISTORY: to_plain(history), 'counts': to_plain(counts), 'max_length': value.max_length}
    raise ValueError(f'a checkpoint cannot hold a {type(value).__name__}: {value!r}')


def restore_history(value: Any) -> Any:
    """The ``HistoryBuffer`` that :func:`to_plain` took apart; anything else as it is."""
    if not isinstance(value, dict) or _HISTORY not in value:
        return value
    return HistoryBuffer(value[_HISTORY].numpy(), value['counts'].numpy(), value['max_length'])


@register_backend('atomic')
class AtomicBackend(LocalBackend):
    """Local files that are either whole or not there: written aside, then renamed."""

    def put(self, obj: bytes, filepath) -> None:
        os.makedirs(os.path.dirname(os.path.abspath(filepath)), exist_ok=True)
        with write_atomically(filepath) as part, open(part, 'wb') as file:
            file.write(obj)


@CheckpointLoader.register_scheme(prefixes=('', 'http://', 'https://'), force=True)
def load_plain(filename: str, map_location: Any = None) -> Any:
    """mmengine's reader of files, names and addresses, without unpickling code; tensors come to the CPU."""
    return read_checkpoint(filename)
