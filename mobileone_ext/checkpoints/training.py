"""Can a run go on from this training checkpoint? Pure checks, each answered by one line that names the misfit.

A training checkpoint is plain data (see ``recipe/checkpointing.py``):

    meta            epoch, iter, seed, dataset_meta, run (images a step), digest (of each part)
    state_dict      the weights, or their moving average where there is one
    ema_state_dict  then: the trained weights, and the count of steps
    optimizer       param_groups, and the state of each parameter by its number
    param_schedulers, message_hub
    hooks           what hooks remember (see ``recipe/memory.py``), of all processes or of each

Code in it, such as the text of a config, is never run: nothing here or above looks at it.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..text import abbreviate
from .load import read_checkpoint
from .structure import differences, shapes_of

PARTS = ('meta', 'state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'message_hub', 'hooks')
_NEEDED = ('meta', 'state_dict', 'optimizer', 'message_hub')
_HUB_PARTS = ('log_scalars', 'runtime_info', 'resumed_keys')
_HOW_TO_STEP = ('capturable', 'differentiable', 'foreach', 'fused')  # of a group; what a step gives is the same
_DIGEST = 'digest'
_MAX_SEED = 2**32
_MAX_DEPTH = 100
_NUMBERS = (torch.float64, torch.float32, torch.int64, torch.int32)


def read_training_checkpoint(path: str | Path) -> dict:
    """The checkpoint at ``path``, sound as far as it can be told without the run that it belongs to.

    Raises:
        OSError: if there is no such file.
        ValueError: naming what is damaged, missing, of another type or not finite.
    """
    checkpoint = read_checkpoint(path)
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in _NEEDED):
        missing = abbreviate(key for key in _NEEDED if not isinstance(checkpoint, dict) or key not in checkpoint)
        raise ValueError(
            f'{path}: not a training checkpoint (without {missing}), so a run cannot be resumed from it; '
            'a fused or weights-only file? Resume from work_dirs/.../epoch_N.pth'
        )
    _named(path, check_training_checkpoint, checkpoint)
    checkpoint['meta'].pop('config', None)  # mmengine would run it
    return checkpoint


def check_fits_run(path: str | Path, checkpoint: dict, expected: dict, params: list, max_epochs: int | None) -> None:
    """Hold ``checkpoint`` against what the run has built.

    Args:
        path: for messages.
        expected: the same parts as a checkpoint that the run would write now.
        params: the parameters by their number in the optimizer's state.
        max_epochs: of the run; None where it counts iterations.

    Raises:
        ValueError: naming what does not fit.
    """
    _named(path, _check_fits, checkpoint, expected, params, max_epochs)


def step_as_built(checkpoint: dict, expected: dict) -> None:
    """Give the optimizer's groups in ``checkpoint`` the config's choice of implementation, in place."""
    for (_, inner), (_, built) in zip(_optimizers(checkpoint['optimizer']), _optimizers(expected['optimizer'])):
        for group, own in zip(inner['param_groups'], built['param_groups']):
            group.update({key: own[key] for key in _HOW_TO_STEP if key in own})


def check_digest(path: str | Path, checkpoint: dict) -> None:
    """Raise ValueError if a part of ``checkpoint`` is not what the run saved; one without digests passes."""
    saved = checkpoint['meta'].get(_DIGEST)
    if saved is None:
        return
    for part, digest in digests(checkpoint).items():
        if not isinstance(saved, dict) or saved.get(part) != digest:
            raise ValueError(
                f'{path}: {part} is not what the run saved (edited?); to resume from it all the same, '
                f"remove its meta['{_DIGEST}']"
            )


def digests(checkpoint: dict) -> dict[str, str]:
    """A hash of the content of each part of a plain checkpoint."""
    meta = {key: value for key, value in checkpoint['meta'].items() if key not in (_DIGEST, 'config')}
    found = {}
    for part in PARTS:
        if part in checkpoint:
            digest = hashlib.sha256()
            for piece in _pieces(meta if part == 'meta' else checkpoint[part]):
                digest.update(piece)
            found[part] = digest.hexdigest()
    return found


def _pieces(value: Any, depth: int = 0) -> Iterator[bytes | memoryview]:
    """``value`` as bytes that differ where values differ."""
    if depth > _MAX_DEPTH:
        raise ValueError('is nested too deeply')
    if isinstance(value, Tensor):
        yield f'{value.dtype}{tuple(value.shape)}'.encode()
        yield value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
    elif isinstance(value, Mapping):
        yield b'{'
        for key, item in value.items():
            yield f'{key!r}:'.encode()
            yield from _pieces(item, depth + 1)
        yield b'}'
    elif isinstance(value, (list, tuple)):
        yield b'['
        for item in value:
            yield from _pieces(item, depth + 1)
        yield b']'
    else:
        yield f'{value!r},'.encode()


def _named(path: str | Path, check, *args) -> None:
    try:
        check(*args)
    except ValueError as error:
        raise ValueError(f'{path}: cannot be resumed from: {error}') from None


def check_training_checkpoint(checkpoint: dict) -> None:
    """The part of the checks that needs no run; raises ValueError without the file's name."""
    for part in PARTS:
        kinds = dict(param_schedulers=(dict, list), hooks=(list,)).get(part, (dict,))
        if part in checkpoint and not isinstance(checkpoint[part], kinds):
            raise ValueError(f'{part} is a {_type(checkpoint[part])}, not a {kinds[-1].__name__}')
    _check_meta(checkpoint['meta'])
    _check_hub(checkpoint['message_hub'], checkpoint['meta'])
    _check_optimizer_form(checkpoint['optimizer'])
    for state in checkpoint.get('hooks', ()):
        if not isinstance(state, dict) or not all(isinstance(values, dict) for values in state.values()):
            raise ValueError(f'hooks holds {_short(state)}, not a dict of what each hook remembers')
    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        if part in checkpoint:
            _check_finite(checkpoint[part], part)


def _check_meta(meta: dict) -> None:
    for key in ('epoch', 'iter'):
        if key not in meta:
            raise ValueError(f'meta has no {key}')
        if not _is_count(meta[key]):
            raise ValueError(f'meta.{key} is {meta[key]!r}, not a count')
    if 'seed' not in meta:
        raise ValueError('meta has no seed')
    seed = meta['seed']
    if seed is not None and not (_is_count(seed) and seed < _MAX_SEED):
        raise ValueError(f'meta.seed is {seed!r}, not a whole number below 2**32')
    for key in ('dataset_meta', 'run', _DIGEST):
        if meta.get(key) is not None and not isinstance(meta[key], dict):
            raise ValueError(f'meta.{key} is a {_type(meta[key])}, not a dict')
    for key, value in (meta.get('run') or {}).items():
        if not (_is_count(value) and value):
            raise ValueError(f'meta.run.{key} is {value!r}, not a count')


def _check_hub(hub: dict, meta: dict) -> None:
    for part in _HUB_PARTS:
        if not isinstance(hub.get(part), dict):
            raise ValueError(f'message_hub has no dict {part}')
        strange = [key for key in hub[part] if not isinstance(key, str)]
        if strange:
            raise ValueError(f'message_hub.{part} has a key {strange[0]!r} that is not text')
    info = hub['runtime_info']
    for key in ('epoch', 'iter'):
        if not _is_count(info.get(key)):
            raise ValueError(f'message_hub.runtime_info.{key} is {info.get(key)!r}, not a count')
    if meta['iter'] and not hub['log_scalars']:
        raise ValueError('message_hub.log_scalars is empty')
    for name, history in hub['log_scalars'].items():
        _check_history(history, f'message_hub.log_scalars.{name}')
    for name, kept in hub['resumed_keys'].items():
        if not isinstance(kept, bool):
            raise ValueError(f'message_hub.resumed_keys.{name} is {kept!r}, not True or False')
    for key, value in info.items():
        if key.startswith(('best_ckpt', 'last_ckpt')) and not isinstance(value, str):
            raise ValueError(f'message_hub.runtime_info.{key} is a {_type(value)}, not a file name')
        if key.startswith('best_score') and not (_is_number(value) and math.isfinite(value)):
            raise ValueError(f'message_hub.runtime_info.{key} is {value!r}, not a finite number')
        if key == 'keep_ckpt_ids' and not (isinstance(value, list) and all(map(_is_count, value))):
            raise ValueError(f'message_hub.runtime_info.{key} is {value!r}, not a list of counts')


def _check_history(history: Any, where: str) -> None:
    """A scalar's history as PlainCheckpointHook writes it."""
    if not isinstance(history, dict) or set(history) != {'history_buffer', 'counts', 'max_length'}:
        raise ValueError(f'{where} is not a history')
    values, counts = history['history_buffer'], history['counts']
    if not (isinstance(values, Tensor) and isinstance(counts, Tensor)):
        raise ValueError(f'{where} holds no tensors')
    if values.dim() != 1 or values.shape != counts.shape or not _is_count(history['max_length']):
        raise ValueError(f'{where}: values {list(values.shape)}, counts {list(counts.shape)}')
    if values.dtype not in _NUMBERS or counts.dtype not in _NUMBERS:
        raise ValueError(f'{where} is {values.dtype} with counts {counts.dtype}')


def _check_optimizer_form(optimizer: dict) -> None:
    for name, inner in _optimizers(optimizer):
        if not isinstance(inner.get('state'), dict) or not isinstance(inner.get('param_groups'), list):
            raise ValueError(f'{name} has no dict state and list param_groups')
        for number, group in enumerate(inner['param_groups']):
            if not isinstance(group, dict) or not isinstance(group.get('params'), list):
                raise ValueError(f'{name}.param_groups[{number}] is not a dict with a list of params')
        for number, entry in inner['state'].items():
            if not _is_count(number) or not isinstance(entry, dict):
                raise ValueError(f'{name}.state[{number!r}] is not the state of a parameter')


def _optimizers(optimizer: dict) -> Iterator[tuple[str, dict]]:
    """The optimizer's state, or those of several with their names."""
    if 'param_groups' in optimizer or 'state' in optimizer:
        yield 'optimizer', optimizer
    elif not optimizer or not all(isinstance(inner, dict) for inner in optimizer.values()):
        raise ValueError('optimizer has no param_groups')
    else:
        for name, inner in optimizer.items():
            yield f'optimizer.{name}', inner


def _check_finite(value: Any, where: str, depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError(f'{where} is nested too deeply')
    if isinstance(value, Tensor):
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f'{where} holds NaN or infinite values')
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_finite(item, f'{where}.{key}', depth + 1)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            _check_finite(item, f'{where}[{number}]', depth + 1)
    elif isinstance(value, float) and math.isnan(value):
        raise ValueError(f'{where} is NaN')


def _check_fits(checkpoint: dict, expected: dict, params: list, max_epochs: int | None) -> None:
    epoch = checkpoint['meta']['epoch']
    if max_epochs is not None and epoch > max_epochs:
        raise ValueError(f'meta.epoch is {epoch}, the run has {max_epochs} epochs')
    _check_same_iterations(checkpoint['meta'])
    _check_tensors(checkpoint['state_dict'], expected['state_dict'], 'state_dict')
    if ('ema_state_dict' in expected) != ('ema_state_dict' in checkpoint):
        one, other = ('the config', 'the file') if 'ema_state_dict' in expected else ('the file', 'the config')
        raise ValueError(f'{one} has a moving average (EMAHook, ema_state_dict), {other} has none')
    if 'ema_state_dict' in expected:
        _check_tensors(checkpoint['ema_state_dict'], expected['ema_state_dict'], 'ema_state_dict')
    complete = _DIGEST not in checkpoint['meta']
    _check_optimizer(checkpoint['optimizer'], expected['optimizer'], params, complete and checkpoint['meta']['iter'])
    if ('param_schedulers' in expected) != ('param_schedulers' in checkpoint):
        one, other = ('config', 'file') if 'param_schedulers' in expected else ('file', 'config')
        raise ValueError(f'the {one} has param_schedulers, the {other} has none')
    if 'param_schedulers' in expected:
        _check_schedulers(checkpoint['param_schedulers'], expected['param_schedulers'], 'param_schedulers')


def _check_same_iterations(meta: dict) -> None:
    steps = (meta.get('run') or {}).get('steps_per_epoch')
    if steps and meta['epoch'] and meta['iter'] != meta['epoch'] * steps:
        raise ValueError(f'meta.iter is {meta["iter"]}, {meta["epoch"]} epochs have {meta["epoch"] * steps}')


def _check_tensors(found: dict, expected: dict, part: str) -> None:
    strange = [key for key, value in found.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strange:
        raise ValueError(f'{part}.{strange[0]} is not a tensor')
    classes = _classes(expected), _classes(found)
    if None not in classes and classes[0] != classes[1]:
        raise ValueError(f'{part} has {classes[1]} classes, the config {classes[0]}')
    problems = differences(shapes_of(expected), shapes_of(found))
    if problems:
        raise ValueError(f'{part}: {"; ".join(problems)}')
    for key, tensor in expected.items():
        if found[key].dtype != tensor.dtype:
            raise ValueError(f'{part}.{key} is {found[key].dtype}, the config builds {tensor.dtype}')


def _classes(state: dict) -> int | None:
    bias = next((value for key, value in state.items() if key.endswith('head.fc.bias')), None)
    return len(bias) if bias is not None and bias.dim() == 1 else None


def _check_optimizer(found: dict, expected: dict, params: list, complete: bool) -> None:
    surplus = set(found) ^ set(expected)
    if surplus:
        raise ValueError(f'optimizer: {abbreviate(sorted(map(str, surplus)))} in one of file and config alone')
    for (name, inner), (_, built) in zip(_optimizers(found), _optimizers(expected)):
        _check_groups(inner['param_groups'], built['param_groups'], f'{name}.param_groups')
        for key in inner:
            if key not in ('state', 'param_groups'):
                _check_like(_what_it_steps(inner[key]), _what_it_steps(built[key]), f'{name}.{key}')
        if name == 'optimizer':
            _check_parameter_states(inner, built['state'], params, complete)


def _what_it_steps(group: Any) -> Any:
    """The options of a group that decide what a step gives."""
    if not isinstance(group, Mapping):
        return group
    return {key: value for key, value in group.items() if key not in _HOW_TO_STEP}


def _check_groups(found: list, expected: list, where: str) -> None:
    if len(found) != len(expected):
        raise ValueError(f'{where}: {len(found)} groups, the config makes {len(expected)}')
    for number, (group, built) in enumerate(zip(found, expected)):
        _check_like(_what_it_steps(group), _what_it_steps(built), f'{where}[{number}]')
        if group['params'] != built['params']:
            raise ValueError(f'{where}[{number}].params: other parameters than the config gives this group')


def _check_parameter_states(optimizer: dict, expected: dict, params: list, complete: bool) -> None:
    for number, entry in optimizer['state'].items():
        if number >= len(params):
            raise ValueError(f'optimizer.state[{number}]: the config has {len(params)} parameters')
        lost = [key for key in expected.get(number, {}) if entry and key not in entry]
        if lost:
            raise ValueError(f'optimizer.state[{number}] comes without {abbreviate(lost)}')
        for key, value in entry.items():
            where = f'optimizer.state[{number}].{key}'
            if key in expected.get(number, {}):
                _check_like(value, expected[number][key], where)
            elif isinstance(value, Tensor):  # of a kind that comes later than with the first step
                if value.shape != params[number].shape and value.numel() != 1:
                    raise ValueError(
                        f'{where} has shape {list(value.shape)}, its parameter {list(params[number].shape)}'
                    )
            elif value is not None and not _is_number(value):
                raise ValueError(f'{where} is a {_type(value)}, not a tensor')
    for number, group in enumerate(optimizer['param_groups']):
        entries = {index: optimizer['state'].get(index) for index in group['params']}
        forms = {tuple((key, type(value)) for key, value in entry.items()) for entry in entries.values() if entry}
        if not expected and len({frozenset(form) for form in forms}) > 1:
            raise ValueError(f'optimizer.state: parameters of group {number} have states of different kinds')
        # Parameters that got no gradient have none; a checkpoint with a digest cannot have lost one.
        needs = group.get('momentum', 1) and complete
        lost = [index for index, entry in entries.items() if not entry and params[index].requires_grad]
        if needs and lost:
            raise ValueError(f'optimizer.state has nothing for parameter {abbreviate(map(str, lost))}')


def _check_schedulers(found: Any, expected: Any, where: str) -> None:
    if type(found) is not type(expected) or len(found) != len(expected):
        raise ValueError(f'{where}: {len(found)}, the config makes {len(expected)}')
    if isinstance(expected, dict):
        _check_same_keys(found, expected, where)
        for name in expected:
            _check_schedulers(found[name], expected[name], f'{where}.{name}')
        return
    for number, (scheduler, built) in enumerate(zip(found, expected)):
        _check_like(scheduler, built, f'{where}[{number}]')
        for key in ('last_step', '_global_step'):
            if key in scheduler and not _is_count(scheduler[key]):
                raise ValueError(f'{where}[{number}].{key} is {scheduler[key]!r}, not a count')


def _check_like(found: Any, expected: Any, where: str) -> None:
    """The same keys and types; lists of the same length, tensors of the same shape."""
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping):
            raise ValueError(f'{where} is a {_type(found)}, not a dict')
        _check_same_keys(found, expected, where)
        for key, value in expected.items():
            _check_like(found[key], value, f'{where}.{key}')
    elif isinstance(expected, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(found) != len(expected):
            raise ValueError(f'{where} is {_short(found)}; the config makes {len(expected)} values')
        for number, value in enumerate(expected):
            _check_like(found[number], value, f'{where}[{number}]')
    elif isinstance(expected, Tensor):
        if not isinstance(found, Tensor) or found.shape != expected.shape:
            raise ValueError(f'{where} is {_short(found)}, not a tensor of shape {list(expected.shape)}')
    elif expected is None and (found is None or isinstance(found, (bool, int, float, str))):
        pass  # some are set by the first step
    elif not _same_type(found, expected):
        raise ValueError(f'{where} is {_short(found)}, a {_type(found)} instead of a {_type(expected)}')


def _check_same_keys(found: Mapping, expected: Mapping, where: str) -> None:
    missing = [str(key) for key in expected if key not in found]
    surplus = [str(key) for key in found if key not in expected]
    if missing or surplus:
        what = f'without {abbreviate(missing)}' if missing else f'with {abbreviate(surplus)}'
        raise ValueError(f'{where} comes {what}, unlike the one that the config makes')


def _same_type(found: Any, expected: Any) -> bool:
    if isinstance(expected, bool) or isinstance(found, bool):
        return isinstance(expected, bool) and isinstance(found, bool)
    if _is_number(expected):
        return _is_number(found)
    return type(found) is type(expected)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _type(value: Any) -> str:
    return type(value).__name__


def _short(value: Any) -> str:
    text = f'a tensor of shape {list(value.shape)}' if isinstance(value, Tensor) else repr(value)
    return text if len(text) <= 60 else f'{text[:60]} ...'
