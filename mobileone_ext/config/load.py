"""Configs from files and from text: loaded, completed as mmpretrain does.

Python configs are code, and run. YAML and JSON are data: read without building objects, their
types must be registered parts.
"""

import ast
import importlib.util
import inspect
import os
import re
import traceback
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config, ConfigDict
from mmengine.fileio import register_handler
from mmengine.fileio.handlers import YamlHandler
from mmengine.registry import Registry, init_default_scope
from mmengine.utils import import_modules_from_strings

from ..files import DATA_SUFFIXES, home, installed
from ..text import hint, one_line
from .keys import check_config, drop_unread
from .override import override

_PACKAGES = ('mobileone_ext', 'mmpretrain', 'mmengine', 'mmcv')  # what a config that is data may import


class SafeYamlHandler(YamlHandler):
    """mmengine's reader of YAML, without ``!!python/object`` and its like."""

    def load_from_fileobj(self, file, **kwargs):
        return yaml.safe_load(file)


def find_file(name: str, folder: str = 'configs', what: str = 'config') -> str:
    """The file ``name``, or where there is none, the one that ships: by its path, or by its bare name in ``folder``.

    Raises:
        OSError: if there is neither, naming those that ship.
    """
    path, bare = installed(name), name.removesuffix('.py')
    shipped = {file.stem: str(file) for file in sorted((home() / folder).glob('*.py'))}
    if os.path.isfile(path):
        return path
    if bare in shipped:
        return shipped[bare]
    raise FileNotFoundError(f'{name}: no such {what} file{hint(Path(bare).name, shipped)}')


def load_config(path: str, options: dict | None = None) -> Config:
    """The mmengine ``Config`` that :func:`find_file` finds, with ``options`` set as :func:`override` does.

    Its scope becomes the default, and mmengine reads YAML as data from then on.

    Names that only the config's text reads (``data_root = ...``) have done their work and are left out.

    Raises:
        ValueError: for a config that doesn't load, a key at the top that nothing reads, a value of the
            wrong kind, or an option that does not fit; OSError if there is no such file.
    """
    path = find_file(path)
    register_handler(['yaml', 'yml'])(SafeYamlHandler)
    try:
        files: dict = {}
        _read_names(os.path.abspath(path), files)
        config = Config.fromfile(path, import_custom_modules=False)
        if any(file.endswith(DATA_SUFFIXES) for file in files):
            _check_names_of_data(config)
        _import_custom(config)
        if hasattr(config, '_imported_names'):  # by read_base()
            config = _with_names_as_types(config)
    except Exception as error:  # a Python config may raise anything
        raise ValueError(f'{path}: {_where(error)}{one_line(error)}') from error
    return completed(config, set().union(*files.values()), options)


def resolved_config(text: str, name: str, options: dict | None = None, keys: Set[str] | None = None) -> Config:
    """The config in ``text``, which is one that mmengine has written: values alone, so that nothing in it is run.

    Args:
        name: of the file that holds it, for messages.
        options: as of :func:`load_config`.
        keys: what to take of it; None takes all.

    Raises:
        ValueError: for text that is more than values, names what is not registered, or is no such config.
    """
    try:
        values = {}
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                values[node.targets[0].id] = _plain(node.value)
            elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                raise ValueError(f'line {node.lineno} is code')
        values = {key: value for key, value in values.items() if keys is None or key in keys}
        config = Config(values, cfg_text=text, filename=name)
        _check_names_of_data(config)
        _import_custom(config)
    except Exception as error:  # text of any kind
        raise ValueError(
            f'{name}: the config of its run is not read ({one_line(error)}); name one before it'
        ) from error
    return completed(config, set(config), options)


def _import_custom(config: Config) -> None:
    """What ``custom_imports`` names; a ValueError has the reason, which mmengine keeps to itself."""
    try:
        import_modules_from_strings(**config.get('custom_imports') or {'imports': []})
    except ImportError as error:
        missing = isinstance(error.__context__, ModuleNotFoundError)
        remedy = '; PYTHONPATH=FOLDER before the command says where a file of yours is' if missing else ''
        raise ValueError(f'custom_imports: {one_line(error.__context__ or error)}{remedy}') from error


def completed(config: Config, read: Set[str] = frozenset(), options: dict | None = None) -> Config:
    """``config`` as tools take it: its scope the default, what its text alone reads left out, ``options`` set, checked.

    Args:
        read: as of :func:`mobileone_ext.config.keys.drop_unread`.
    """
    config.default_scope = config.get('default_scope') or 'mmpretrain'  # mmengine's Runner would take its own
    init_default_scope(config.default_scope)
    drop_unread(config, read)
    if options:
        config = override(config, options, from_command_line=True)
    _complete(config)
    check_config(config)
    return config


def _complete(config: Config) -> None:
    """What mmpretrain's own tools put into a config before they run it."""
    top = config.pop('data_preprocessor', None)
    model = config.get('model')
    if top and isinstance(model, dict):
        model.setdefault('data_preprocessor', top)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = config.get(name)
        if isinstance(loader, dict):
            loader.setdefault('collate_fn', ConfigDict(type='default_collate'))
            if loader.get('num_workers', 0) == 0:
                loader['persistent_workers'] = False


def _plain(node: ast.expr) -> Any:
    """The value that literals and ``dict(...)`` have without being run."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        return dict(*map(_plain, node.args)) | {keyword.arg: _plain(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict) and len(keys := [key for key in node.keys if key]) == len(node.values):
        return {_plain(key): _plain(value) for key, value in zip(keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_plain(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    return ast.literal_eval(node)


def _read_names(path: str, files: dict[str, set[str]]) -> None:
    """Fill ``files`` with the config at ``path`` and all its bases, each with the names that its text reads."""
    if path in files:
        return
    text = Path(path).read_text(encoding='utf-8')
    files[path] = set(re.findall(r'\b_base_\.(\w+)', text))
    if path.endswith('.py'):
        tree = ast.parse(re.sub(r'\{\{[^{}]*\}\}', '0', text))  # without mmengine's placeholders
        names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
        files[path] |= {name.id for name in names if isinstance(name.ctx, ast.Load)}
        if Config._is_lazy_import(path):
            for module in Config._get_base_modules(tree.body):
                _read_names(_module_file(module, path), files)
            return
    for base in Config._get_base_files(path):
        _read_names(os.path.abspath(Config._get_cfg_path(base, path)[0]), files)


def _module_file(module: str, path: str) -> str:
    """The file of a ``read_base()`` import, absolute or relative to the config at ``path``."""
    dots = len(module) - len(module.lstrip('.'))
    if dots:
        return str(Path(path).parents[dots - 1].joinpath(*module[dots:].split('.')).with_suffix('.py'))
    package, *rest = module.split('.')
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f'read_base() imports {module}, but {package} is not installed')
    return str(Path(spec.origin).parent.joinpath(*rest).with_suffix('.py'))


def _where(error: Exception) -> str:
    """The line of a config at which ``error`` came up, where that is known, and what kind it is."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == '<module>']
    name = '' if isinstance(error, (ValueError, OSError)) else f'{type(error).__name__}: '
    if not lines or not lines[-1].filename.endswith('.py') or '/site-packages/' in lines[-1].filename:
        return name
    return f'line {lines[-1].lineno} of {Path(lines[-1].filename).name}: {name}'


def _check_names_of_data(config: Config) -> None:
    """Raise ValueError for a ``type`` that is a path of Python (``os.system``), and for imports from anywhere."""
    modules = config.get('custom_imports', {}).get('imports', [])
    for module in [modules] if isinstance(modules, str) else modules:
        if module.split('.')[0] not in _PACKAGES:
            raise ValueError(f'custom_imports of {module}: only a Python config may import it')
    parts = _names_of_parts()
    for name in _types(dict(config.items())):
        if isinstance(name, str) and '.' in name and name not in parts.values():
            raise ValueError(f'type={name!r}: no registered part; only a Python config may name others')


def _types(value: Any) -> Iterator[Any]:
    """Every ``type`` in a config."""
    if isinstance(value, dict):
        if 'type' in value:
            yield value['type']
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for child in value:
        yield from _types(child)


def _with_names_as_types(config: Config) -> Config:
    """A config by ``read_base()`` as text configs are: registered names instead of classes."""
    parts = _names_of_parts()

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(value[key]) for key in value}
        if isinstance(value, (list, tuple)):
            return type(value)(named(item) for item in value)
        return parts.get(value, value) if inspect.isclass(value) or inspect.isfunction(value) else value

    values = {key: named(config[key]) for key in config if key not in config._imported_names}
    return Config(values, filename=config.filename)


def _names_of_parts() -> dict[Any, str]:
    """Every registered class and function, and its name in a config: with the scope of its registry."""
    from mmengine import registry as mmengine
    from mmpretrain.utils import register_all_modules

    from .. import registry as ours

    register_all_modules(init_default_scope=False)
    waiting = [value for module in (mmengine, ours) for value in vars(module).values() if isinstance(value, Registry)]
    names: dict = {}
    for registry in waiting:
        registry.import_from_location()
        waiting.extend(registry.children.values())
        for name, part in registry.module_dict.items():
            if inspect.isclass(part) or inspect.isfunction(part):
                names.setdefault(part, name if registry.scope == 'mmengine' else f'{registry.scope}.{name}')
    return names
