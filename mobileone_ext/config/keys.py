"""Keys and values of a config that nobody else looks at, and one line for what its parts raise when they are built.

mmengine calls ``cls(**values)``, so a part refuses a key that it does not take, before the first step. Looked at
here is what would do something else without a word: keys at the top, tables of which mmengine picks keys, and
values that are taken as they are or that a hook meets hours later.
"""

import difflib
import inspect
import os
import re
import traceback
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from itertools import chain
from numbers import Real
from typing import Any

from mmengine import registry
from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import Runner

from ..arguments import is_integer
from ..files import TRACEBACK_VARIABLE
from ..text import hint, one_line

# What Config.fromfile reads, or the Runner from its `cfg`, beside the Runner's arguments; and what mmpretrain's
# tools read: `data_preprocessor` goes into the model, the others serve its own tools.
_BESIDE_RUNNER = {
    'activation_checkpointing', 'compile', 'custom_imports', 'data_preprocessor', 'efficient_conv_bn_eval',
    'find_unused_parameters', 'model_wrapper_cfg', 'sync_bn', 'tta_model', 'tta_pipeline',
}  # fmt: skip
# Keys of MMClassification 0.x that some configs of mmpretrain still set; nothing has read them since.
_OLD = {
    'bgr_std', 'checkpoint_config', 'data', 'dist_params', 'evaluation', 'fp16', 'log_config', 'lr_config', 'optimizer',
    'optimizer_config', 'resume_from', 'runner', 'workflow',
}  # fmt: skip
# Tables of which mmengine picks the keys that it knows.
_TABLES = {
    'auto_scale_lr': {'enable', 'base_batch_size'},
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
}
# Whole numbers wherever they stand, and the smallest that makes sense; `interval=-1` is mmengine's "never".
_COUNTS = {
    'batch_size': 1,
    'interval': -1,
    'max_epochs': 1,
    'max_iters': 1,
    'num_classes': -1,  # some backbones' "no head"
    'num_workers': 0,
    'val_begin': 0,
    'val_interval': 1,
}
_NUMBERS = {'lr', 'momentum', 'weight_decay'}
# Text of the user, which may look like anything.
TEXTS = {
    'ann_file', 'checkpoint', 'data_prefix', 'data_root', 'experiment_name', 'load_from', 'prefix', 'split',
    'teacher_checkpoint', 'work_dir',
}  # fmt: skip


def known_keys() -> set[str]:
    """The top-level keys that the Runner, mmpretrain or a tool reads."""
    return set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'} | _BESIDE_RUNNER


def drop_unread(config: Config, read: Set[str] = frozenset()) -> None:
    """Take the top-level keys out of ``config`` that have done their work, as its text alone reads them.

    Args:
        read: the names that the text of the config or of its bases reads.

    Raises:
        ValueError: for a key that nothing reads; mmengine would ignore it.
    """
    known = known_keys()
    for key in [key for key in config if key not in known]:
        if key not in read and key not in _OLD:
            raise ValueError(f'config key {key!r}: nothing reads it{hint(key, known)}')
        config.pop(key)


def check_config(config: Config) -> None:
    """Raise ValueError for a key or a value that would be passed over, or be met when the run is on its way."""
    for table, known in _TABLES.items():
        for key in set(config.get(table) or ()) - known:
            raise ValueError(f'config key {f"{table}.{key}"!r}: nothing reads it{hint(key, known)}')
    for place, key, value in _entries(dict(config.items())):
        expected = _expected(key, value)
        if expected:
            raise ValueError(f'{place}{key}={value!r}: {expected} is needed')


def _expected(key: str, value: Any) -> str:
    """What is needed in place of ``value``, an empty string if it will do."""
    if key in _COUNTS and value is not None and not (is_integer(value) and value >= _COUNTS[key]):
        return f'a whole number from {_COUNTS[key]} on'
    if key in _NUMBERS and value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
        return 'a number'
    # Text is true, whatever it says.
    if isinstance(value, str) and key not in TEXTS:
        return 'True or False, no text,' if difflib.get_close_matches(value.lower(), ('true', 'false'), 1, 0.8) else ''
    return ''


def _entries(value: Any, place: str = '') -> Iterator[tuple[str, str, Any]]:
    """Place, key and value of every entry of the dicts in ``value``."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield place, key, child
            yield from _entries(child, f'{place}{key}.')
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            yield from _entries(child, f'{place}{index}.')


@contextmanager
def building(name: str, what: str = 'does not build') -> Iterator[None]:
    """Whatever is raised while the parts of a config are built is a mistake of the config: ValueError, in one line.

    mmengine and the classes that configs name check their arguments by assert, KeyError or not at all.
    """
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        unknown = re.match(r"'(\S+) is not in the (?:\w+::)?([\w ]+) registry", str(error))
        if isinstance(error, KeyError) and unknown:
            raise ValueError(f'{name}: {what}: {unknown_part(*unknown.groups())}') from error
        where = '' if os.environ.get(TRACEBACK_VARIABLE) else f' ({TRACEBACK_VARIABLE}=1 shows where)'
        part = _part_of(error)
        label = getattr(part, '__name__', '')
        whose = f'{label}: ' if label not in str(error) else ''
        said = f'{whose}{type(error).__name__}: {one_line(error)[:400]}{_slip(error, part)}'
        raise ValueError(f'{name}: {what}: {said}{where}') from error


def unknown_part(name: str, kind: str) -> str:
    """What to say of a ``name`` that no registry of a ``kind`` (``'model'``, ``'parameter scheduler'``) has."""
    known: list[str] = []
    for root in vars(registry).values():
        family = (root, *root.children.values()) if isinstance(root, Registry) else ()
        if kind in {part.name for part in family}:
            known += chain.from_iterable(map(_names_in, family))
    return f'no {kind} is {name!r}{hint(name, known)}'


def _names_in(part: Registry) -> Iterator[str]:
    """What a config calls the parts that are registered there."""
    plain = part.parent is None or part.scope == DefaultScope.get_current_instance().scope_name
    yield from (name if plain else f'{part.scope}.{name}' for name in part.module_dict)


def _part_of(error: Exception) -> Any:
    """The class or function that mmengine called when ``error`` came up, the innermost one; None if there is none."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    built = [frame.f_locals.get('obj_cls') for frame in frames if frame.f_code.co_name == 'build_from_cfg']
    named = re.match(r'(\w+)\.__init__\(\)', str(error))  # the loader, which no registry has
    return built[-1] if built else frames[-1].f_globals.get(named[1]) if named else None


def _slip(error: Exception, part: Any) -> str:
    """What may have been meant by a key that ``part`` does not take, as ``error`` says; empty for any other error."""
    key = re.search(r"unexpected keyword argument '(\w+)'$", str(error))  # newer Pythons say it themselves
    if not (key and callable(part)):
        return ''
    return hint(key[1], _taken_by(part))


def _taken_by(part: Callable) -> set[str]:
    """The keys that a class or function takes, and of a class that passes others on, those of its bases."""
    kinds = map(vars, inspect.getmro(part) if inspect.isclass(part) else ())
    names: set[str] = set()
    for function in [kind['__init__'] for kind in kinds if '__init__' in kind] or [part]:
        given = inspect.signature(function).parameters.values()
        names |= {one.name for one in given if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        if all(one.kind != one.VAR_KEYWORD for one in given):
            break
    return names - {'self'}


def require_data(config: Config, loader: str) -> None:
    """Raise ValueError unless the config has ``loader`` (``'test_dataloader'``) and what goes with it."""
    part = loader.split('_')[0]
    beside = ('train_cfg', 'optim_wrapper') if part == 'train' else (f'{part}_evaluator', f'{part}_cfg')
    missing = [key for key in (loader, *beside) if config.get(key) is None]
    if missing:
        remedy = '' if part == 'train' else f'; in a config on our bases: {part}_dataloader = val_dataloader'
        name = config.filename or 'the config'
        raise ValueError(f'{name}: has no {part} set: {", ".join(missing)} missing{remedy}')
