"""The door of a resume: a training checkpoint, read and checked, as a dict.

It is plain data (see ``recipe/checkpointing.py``):

    meta            epoch, iter, seed, dataset_meta, run (images a step), digest (of each part)
    state_dict      the weights, or their moving average where there is one
    ema_state_dict  then: the trained weights, and the count of steps
    optimizer       param_groups, and the state of each parameter by its number
    param_schedulers, message_hub
    hooks           what hooks remember (see ``recipe/memory.py``), of all processes or of each

What matches its digest is what a run has saved. What the config may have changed since is held against the run.
Code in it, such as the text of a config, is never run: nothing here or above looks at it.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..text import abbreviate, shorten
from .load import read_checkpoint
from .structure import Shape, differences

PARTS = ('meta', 'state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'message_hub', 'hooks')
_NEEDED = ('meta', 'state_dict', 'optimizer', 'message_hub')
_BUILT = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')  # by the config
_HOW_TO_STEP = ('capturable', 'differentiable', 'foreach', 'fused')  # of a group; what a step gives is the same
_DIGEST = 'digest'


def read_training_checkpoint(path: str | Path, without_digest: bool = False) -> dict:
    """The checkpoint at ``path`` as the run saved it.

    Args:
        without_digest: take a file that was edited, or has no digest, as well; then its meta has none.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is damaged, no training checkpoint, or not what a run saved.
    """
    checkpoint = read_checkpoint(path)
    parts = checkpoint if isinstance(checkpoint, dict) else {}
    missing = [key for key in _NEEDED if not isinstance(parts.get(key), dict)]
    if missing:
        raise ValueError(
            f'{path}: not a training checkpoint (without {abbreviate(missing)}), so a run cannot be resumed from it; '
            'a fused or weights-only file? Resume from work_dirs/.../epoch_N.pth'
        )
    meta = checkpoint['meta']
    meta.pop('config', None)  # mmengine would run it
    if without_digest:
        meta.pop(_DIGEST, None)
        counts = {key: meta.get(key) for key in ('epoch', 'iter', 'seed')}
        _refuse(path, _unlike(counts, dict.fromkeys(counts, 0), 'meta'))
    else:
        _check_digest(path, checkpoint, meta.get(_DIGEST))
    return checkpoint


def history(checkpoint: dict, name: str) -> list[float]:
    """The values of a scalar that the run logged, ``'train/loss'`` of each step say; none where it logged no such."""
    logged = checkpoint['message_hub']['log_scalars'].get(name)
    return logged['history_buffer'].tolist() if logged else []


def _check_digest(path: str | Path, checkpoint: dict, saved: Any) -> None:
    if saved is None:
        what = 'it has no digest, so nothing tells whether it is what a run saved'
    else:
        now, saved = digests(checkpoint), saved if isinstance(saved, dict) else {}
        changed = [part for part in PARTS if now.get(part) != saved.get(part)]
        what = f'{abbreviate(changed)} is not what the run saved (edited?)' if changed else ''
    if what:
        raise ValueError(f'{path}: {what}; --without-digest resumes from it all the same')


def is_sealed(checkpoint: dict) -> bool:
    """Whether what :func:`read_training_checkpoint` gave is as the run saved it."""
    return _DIGEST in checkpoint['meta']


def digests(checkpoint: dict) -> dict[str, str]:
    """A hash of the content of each part of a plain checkpoint."""
    meta = {key: value for key, value in checkpoint['meta'].items() if key not in (_DIGEST, 'config')}
    return {part: digest({**checkpoint, 'meta': meta}[part]) for part in PARTS if part in checkpoint}


def digest(value: Any) -> str:
    """A hash of plain data: others of the same hash have the same values, of the same types, bit for bit."""
    hasher = hashlib.sha256()
    for piece in _pieces(value):
        hasher.update(piece)
    return hasher.hexdigest()


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    """``value`` as bytes that differ where values differ."""
    if isinstance(value, Tensor):
        yield f'{value.dtype}{tuple(value.shape)}'.encode()
        if value.numel():
            yield value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
    elif isinstance(value, Mapping):
        yield b'{'
        for key, item in value.items():
            yield f'{key!r}:'.encode()
            yield from _pieces(item)
        yield b'}'
    elif isinstance(value, (list, tuple)):
        yield b'['
        for item in value:
            yield from _pieces(item)
        yield b']'
    else:
        yield f'{value!r},'.encode()


def check_fits_run(path: str | Path, checkpoint: dict, expected: dict, max_epochs: int | None) -> None:
    """Raise ValueError, naming what does not fit, or is NaN or infinite, unless the run can go on from ``checkpoint``.

    Args:
        path: for messages.
        expected: a checkpoint that the run would write now, the optimizer after a step.
        max_epochs: of the run; None where it counts iterations.
    """
    _refuse(path, misfits(checkpoint, expected, max_epochs))


def _refuse(path: str | Path, reasons: Iterator[str]) -> None:
    reason = next(reasons, None)
    if reason:
        raise ValueError(f'{path}: cannot be resumed from: {reason}')


def misfits(checkpoint: dict, expected: dict, max_epochs: int | None) -> Iterator[str]:
    """Why a run cannot go on from ``checkpoint``; see :func:`check_fits_run`."""
    meta = checkpoint['meta']
    epoch, steps = meta['epoch'], (meta.get('run') or {}).get('steps_per_epoch')
    if not 0 <= epoch <= (math.inf if max_epochs is None else max_epochs):
        yield f'meta.epoch is {epoch}, the run has {max_epochs} epochs'
    if steps and epoch and meta['iter'] != epoch * steps:
        yield f'meta.iter is {meta["iter"]}, {epoch} epochs have {epoch * steps}'
    saved = {part: checkpoint[part] for part in _BUILT if part in checkpoint}
    yield from _other_keys(saved, expected, 'the file')
    for part, built in expected.items():
        if part != 'optimizer':
            yield from _unlike(saved[part], built, part)
    states, built_states = _optimizers(checkpoint), _optimizers(expected)
    yield from _other_keys(states, built_states, 'the file')
    for name, built in built_states.items():
        yield from _unlike_optimizer(states[name], built, name, is_sealed(checkpoint))


def step_as_built(checkpoint: dict, expected: dict) -> None:
    """Give the optimizer's groups in ``checkpoint`` the run's choice of implementation, in place."""
    built = _optimizers(expected)
    for name, state in _optimizers(checkpoint).items():
        for group, own in zip(_groups(state), _groups(built[name])):
            group.update({key: own[key] for key in _HOW_TO_STEP if key in own})


def _groups(state: dict) -> list[dict]:
    """The optimizer's groups, and what mmengine keeps of the settings that they come from."""
    return [*state['param_groups'], state.get('base_param_settings') or {}]


def _optimizers(checkpoint: dict) -> dict[str, dict]:
    """The state of the optimizer, or those of several, by their places."""
    state = checkpoint['optimizer']
    if 'param_groups' in state or 'state' in state:
        return {'optimizer': state}
    return {f'optimizer.{name}': inner for name, inner in state.items()}


def _unlike_optimizer(saved: dict, expected: dict, where: str, sealed: bool) -> Iterator[str]:
    rest, built_rest = ({key: state[key] for key in state if key != 'state'} for state in (saved, expected))
    yield from _unlike(rest, built_rest, where)
    states, where = expected['state'], f'{where}.state'
    lost = [str(number) for number, built in states.items() if built and not saved['state'].get(number)]
    if lost and not sealed:  # in a sealed one these had no gradient
        yield f'{where} has nothing for parameter {abbreviate(lost)}'
    for number, entry in saved['state'].items():
        # Keys that come later than with the first step have nothing to be held against.
        built = states.get(number, {}) if entry else {}
        yield from _unlike({key: entry[key] for key in built if key in entry}, built, f'{where}[{number}]')


def _unlike(saved: Any, expected: Any, where: str) -> Iterator[str]:
    """What has other keys or another type, length or shape than expected, or is not finite."""
    if isinstance(expected, Mapping) and isinstance(saved, Mapping):
        yield from _other_keys(saved, expected, where)
        for key in expected:
            yield from _unlike(saved[key], expected[key], f'{where}.{key}')
    elif isinstance(expected, (list, tuple)) and isinstance(saved, (list, tuple)):
        if len(saved) != len(expected):
            yield f'{where} has {len(saved)} entries, the config makes {len(expected)}'
        for number, pair in enumerate(zip(saved, expected)):
            yield from _unlike(*pair, f'{where}[{number}]')
    elif not _is_like(saved, expected):
        yield f'{where} is {_short(saved)}, the config makes {_short(expected)}'
    elif isinstance(saved, (Tensor, float)) and not _is_sound(saved):
        yield f'{where} holds NaN or infinite values'


def _other_keys(saved: Mapping, expected: Mapping, where: str) -> Iterator[str]:
    shapeless: list[dict[str, Shape]] = [{str(key): () for key in mapping} for mapping in (expected, saved)]
    yield from (f'{where}: {problem}' for problem in differences(*shapeless))


def _is_like(saved: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        return isinstance(saved, Tensor) and (saved.shape, saved.dtype) == (expected.shape, expected.dtype)
    if expected is None:  # some are set by the first step
        return saved is None or isinstance(saved, (bool, int, float, str))
    return type(saved) is type(expected) or {type(saved), type(expected)} == {int, float}


def _is_sound(value: Tensor | float) -> bool:
    """Schedulers begin with bounds that are infinite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    return not math.isnan(value)


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f'a tensor of shape {list(value.shape)} ({value.dtype})'
    return f'{shorten(repr(value), 60)} ({type(value).__name__})'
