"""A study file: a title, named variants of a config, and the paper's numbers where there are some.

    title = 'Re-parameterizable branches'
    variants = {
        'all': {},
        'no skip': {'model.backbone.use_skip': False},
    }
    paper = dict(source='arXiv 2206.04040, Table 5, ImageNet top-1', numbers={'all': 71.4})

The first variant is the one that the others are compared with.
"""

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..config import building


class Paper(NamedTuple):
    """Where the paper's ``numbers`` (top-1 in percent, by variant) stand."""

    source: str = ''
    numbers: dict[str, float] = {}


class Contents(NamedTuple):
    """The names that a study's file sets."""

    title: str
    variants: dict[str, dict[str, Any]]
    paper: dict[str, Any] = {}


class Study(NamedTuple):
    """A study as read from its file; ``numbers`` are the paper's, by variant."""

    name: str
    title: str
    text: str
    variants: dict[str, dict[str, Any]]
    source: str
    numbers: dict[str, float]


def read_study(path: str) -> Study:
    """The checked study in the Python file ``path``; its docstring becomes ``text``.

    Raises:
        OSError: if the file cannot be read.
        ValueError: for a name given twice (Python itself would keep the
            second), an unknown name, a study without variants, and whatever Python raises over the file.
    """
    with building(path, 'is no study'):
        return _read(path)


def _read(path: str) -> Study:
    tree = ast.parse(Path(path).read_text(encoding='utf-8'), path)
    _check_no_duplicates(tree, path)
    names: dict[str, Any] = {}
    exec(compile(tree, path, 'exec'), names)
    contents = Contents(**{name: value for name, value in names.items() if not name.startswith('_')})
    paper, variants = Paper(**contents.paper), {name: {**value} for name, value in contents.variants.items()}
    for name in paper.numbers:
        if name not in variants:
            raise ValueError(f'{path}: paper: {name!r} is no variant')
    folders = {folder_name(name) for name in variants}
    if not variants or len(folders) < len(variants) or not all(re.search(r'[A-Za-z0-9]', name) for name in folders):
        raise ValueError(f'{path}: a study has variants, whose names differ in letters or digits: each has a folder')
    return Study(Path(path).stem, contents.title, ast.get_docstring(tree) or '', variants, *paper)


def choose(study: Study, names: Sequence[str]) -> Study:
    """The study of these variants alone, in the study's order.

    Raises:
        ValueError: for a name that is no variant.
    """
    for name in names:
        if name not in study.variants:
            raise ValueError(f'study {study.name} has no variant {name!r}; it has {", ".join(study.variants)}')
    return study._replace(variants={name: value for name, value in study.variants.items() if name in names})


def _check_no_duplicates(tree: ast.AST, path: str) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            twice = [key for key in keys if keys.count(key) > 1]
            if twice:
                raise ValueError(f'{path}: line {node.lineno}: {twice[0]!r} is given twice')


def overrides_label(overrides: dict[str, Any]) -> str:
    """A variant's overrides as one line for the console."""
    values = {key: 'by the base config' if callable(value) else value for key, value in overrides.items()}
    return ', '.join(f'{key}: {value}' for key, value in values.items()) or 'the base config'


def folder_name(variant: str) -> str:
    """The folder of a variant: its name in plain characters."""
    return re.sub(r'[^A-Za-z0-9.+=-]+', '_', variant).strip('_')
