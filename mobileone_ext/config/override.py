"""Named overrides of a config: ``model.backbone.use_skip=False``, ``custom_hooks.EMAHook.momentum=0.001``."""

import copy
import difflib
from typing import Any

from mmengine.config import Config, ConfigDict

from ..recipe.schedule import for_length
from ..text import hint, option_value, type_name
from .keys import TEXTS, building, known_keys

_NEARLY = 0.85  # difflib's ratio of a slip of the pen: `pipline`, but not `max_iters` for `max_epochs`
_OF_CLASS = ('type', 'by_epoch')  # what decides on the class, of a loop the second as well
_UNITS = {'train_cfg.max_epochs': 'epochs', 'train_cfg.max_iters': 'iterations'}


def override(config: Config, overrides: dict[str, Any], from_command_line: bool = False) -> Config:
    """A copy of ``config`` with every override, ``{'model.backbone.use_skip': False}``, applied.

    A part of a key is a dict's key, a list's index, or the ``type`` of one of a
    list's dicts without its scope: ``custom_hooks.EMAHook.momentum``. A value replaces
    what was there, whole; a function of the config gives the value. In a list, a type that is there is
    replaced by the value, one that isn't is appended, and None removes it if it is there.

    Another number of epochs (or iterations) takes the schedule along, see
    :func:`mobileone_ext.recipe.schedule.for_length`; a schedule that is overridden itself stays as it is given.

    Args:
        from_command_line: whether text stands for the value that :func:`mobileone_ext.text.option_value` reads in it,
            and None is a value like others, but beside another ``type``; else text is text, and None takes any key
            of a dict away.

    Raises:
        ValueError: naming a key that leads nowhere.
    """
    config = copy.deepcopy(config)
    if config.get('custom_hooks') is None:
        config['custom_hooks'] = []  # a list to mmengine as well, where a config has none
    for key, value in overrides.items():
        if key in _UNITS and not callable(value):
            length = option_value(value) if from_command_line and isinstance(value, str) else value
            config = _follow_length(config, key, length, overrides, from_command_line)
    changed: list[tuple[dict, str]] = []
    for key, value in overrides.items():
        *path, last = key.split('.')
        value = value(config) if callable(value) else value
        node = config
        for part in path:
            node = _child(node, part, key)
        if from_command_line and isinstance(value, str):
            value = _meant(value, node, last)
        if isinstance(node, list):
            _set_in_list(node, last, copy.deepcopy(value), key)
            continue
        _check_name(node, last, key)
        if value is None and not from_command_line:
            node.pop(last, None)
        else:
            node[last] = copy.deepcopy(value)
            changed.append((node, last))
    retyped = [id(node) for node, name in changed if name in _OF_CLASS]
    for node, name in changed:
        if id(node) in retyped and node.get(name, '') is None:  # another class need not have the key at all
            node.pop(name)
    return config


def _meant(text: str, node: dict | list, last: str) -> Any:
    """What ``text`` on a command line means for ``last`` of ``node``: a path or name stands as written."""
    value = option_value(text, words=isinstance(node, dict) and isinstance(node.get(last), (list, tuple)))
    return text if last in TEXTS and not isinstance(value, str | dict | None) else value


def _follow_length(config: Config, key: str, value: Any, overrides: dict[str, Any], say: bool) -> Config:
    """``config`` at another length, its schedule too; as it is where there is no length to start from."""
    loop, name = config.get('train_cfg') or {}, key.split('.')[1]
    (other,) = _UNITS.keys() - {key}
    retyped = not {'train_cfg.type', 'train_cfg.by_epoch'}.isdisjoint(overrides)
    if name not in loop and loop.get(other.split('.')[1]) and not retyped:
        raise ValueError(f'{key}={value!r}: the config trains by {_UNITS[other]}, {other}=N')
    old = loop.get(name)
    if not isinstance(old, int) or isinstance(value, bool) or not isinstance(value, int) or min(value, old) < 1:
        return config  # nothing to follow; a value that is no count is refused with the others
    given = {part for part in ('param_scheduler', 'custom_hooks') if any(k.split('.')[0] == part for k in overrides)}
    if say and value != old and 'param_scheduler' not in given:
        print(f'{_UNITS[key]}: {value} instead of {old}; the schedule follows')
    with building(key, 'the schedule does not follow'):
        return for_length(config, value, keep=given)


def _child(node: dict | list, part: str, key: str) -> dict | list:
    if isinstance(node, list):
        index = _index(node, part, key)
        if index is None:
            names = ', '.join(filter(None, map(type_name, node))) or 'none'
            raise ValueError(f'override {key!r}: nothing of type {part!r} there; there are {names}')
        child = node[index]
    else:
        if node.get(part) is None:
            _check_name(node, part, key)
            node[part] = ConfigDict()
        child = node[part]
    if not isinstance(child, (dict, list)):
        raise ValueError(f'override {key!r}: {part!r} is {child!r}, nothing is inside it')
    return child


def _index(items: list[dict], part: str, key: str) -> int | None:
    """The place of ``part``, an index or a type, in ``items``; None if there is nothing of that type."""
    if part.isdigit():
        if int(part) >= len(items):
            raise ValueError(f'override {key!r}: index {part} of a list of {len(items)}')
        return int(part)
    matches = [index for index, item in enumerate(items) if type_name(item) == part]
    if len(matches) > 1:
        raise ValueError(f'override {key!r}: {len(matches)} of type {part!r} there; give the index')
    return matches[0] if matches else None


def _set_in_list(items: list[dict], part: str, value: Any, key: str) -> None:
    index = _index(items, part, key)
    if value is not None and not part.isdigit() and type_name(value) != part:
        raise ValueError(f'override {key!r}: its value must be a dict with type {part!r}')
    if index is not None:
        items[index : index + 1] = [] if value is None else [value]
    elif value is not None:
        items.append(value)


def _check_name(node: dict, name: str, key: str) -> None:
    """Raise ValueError for a key that nothing reads at the top, or is nearly one that ``node`` has."""
    if name in node:
        return
    if isinstance(node, Config):
        known = known_keys() - {'data_preprocessor'}
        if name not in known:
            raise ValueError(
                f'override {key!r}: no {name!r} there and nothing reads it{hint(name, known)} '
                "(a variable of the config's text is gone by then: name the key that it went to)"
            )
    elif close := difflib.get_close_matches(name, map(str, node), 1, _NEARLY):
        raise ValueError(f'override {key!r}: no {name!r} there; did you mean {close[0]!r}?')
