"""Overrides of a config, ``{'model.backbone.use_skip': False}``, that must fit.

A part of a key is a dict's key, a list's index, or the ``type`` of one of a
list's dicts without its scope: ``custom_hooks.EMAHook.momentum``. A value replaces
what was there, whole; None removes it; a function of the config gives the value.
"""

import copy
import inspect
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain import registry as mmpretrain

from .. import registry as ours

_REGISTRIES = [
    value for module in (ours, mmpretrain) for value in vars(module).values() if isinstance(value, ours.Registry)
]


def override(config: Config, overrides: dict[str, Any]) -> Config:
    """A copy of ``config`` with every override applied.

    In a list, a type that is there is replaced by the value, one that isn't is
    appended, and None removes it if it is there.

    Raises:
        ValueError: naming a key that leads nowhere, or that nothing would read.
    """
    config = copy.deepcopy(config)
    config.setdefault('custom_hooks', [])  # a list to mmengine as well, where a config has none
    for key, value in overrides.items():
        *path, last = key.split('.')
        value = value(config) if callable(value) else value
        node = config
        for part in path:
            node = _child(node, part, key)
        if isinstance(node, list):
            _set_in_list(node, last, copy.deepcopy(value), key)
            continue
        _check_known(node, last, key)
        if value is None:
            node.pop(last, None)
        else:
            node[last] = copy.deepcopy(value)
    return config


def _child(node: dict | list, part: str, key: str) -> dict | list:
    if isinstance(node, list):
        index = _index(node, part, key)
        if index is None:
            raise ValueError(f'override {key!r}: nothing of type {part!r} there; there are {_names(node)}')
        child = node[index]
    else:
        if part not in node:
            raise ValueError(f'override {key!r}: no {part!r} there; there are {", ".join(map(str, node))}')
        child = node[part]
    if not isinstance(child, (dict, list)):
        raise ValueError(f'override {key!r}: {part!r} is {child!r}, nothing is inside it')
    return child


def _index(items: list[dict], part: str, key: str) -> int | None:
    if part.isdigit():
        if int(part) >= len(items):
            raise ValueError(f'override {key!r}: index {part} of a list of {len(items)}')
        return int(part)
    matches = [index for index, item in enumerate(items) if _type_name(item) == part]
    if len(matches) > 1:
        raise ValueError(f'override {key!r}: {len(matches)} of type {part!r} there; give the index')
    return matches[0] if matches else None


def _set_in_list(items: list[dict], part: str, value: Any, key: str) -> None:
    index = _index(items, part, key)
    if value is not None and not part.isdigit() and _type_name(value) != part:
        raise ValueError(f'override {key!r}: its value must be a dict with type {part!r}')
    if index is not None:
        items[index : index + 1] = [] if value is None else [value]
    elif value is not None:
        items.append(value)


def _check_known(node: dict, last: str, key: str) -> None:
    """Raise ValueError unless ``node`` has the key ``last``, or its type takes such an argument."""
    if last in node or isinstance(node, Config):  # top-level keys are checked by cli.check_keys_are_read
        return
    known = sorted(set(node) | _arguments(node.get('type')))
    if last not in known and '**' not in known:
        raise ValueError(f'override {key!r}: nothing reads {last!r} there; known are {", ".join(known)}')


def _arguments(type_name: str | None) -> set:
    """The arguments of a registered type; with ``'**'`` if it takes any."""
    if type_name is None:
        return set()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        found = [entry for registry in _REGISTRIES if (entry := registry.get(type_name)) is not None]
    names = set()
    for cls in inspect.getmro(found[0]) if found else ():
        if cls is object or '__init__' not in vars(cls):
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {'self'}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names
    return names | {'**'}


def _type_name(item: Any) -> str:
    return str(item.get('type', '')).rsplit('.', 1)[-1] if isinstance(item, dict) else ''


def _names(items: list[dict]) -> str:
    return ', '.join(filter(None, map(_type_name, items))) or 'none'
