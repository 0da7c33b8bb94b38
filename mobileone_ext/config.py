"""The configs that tools read: loaded, completed as mmpretrain does, overridden; every key held against its reader.

Python configs are code, and run. YAML and JSON are data: read without building objects, their
types must be registered parts. mmengine ignores a top-level key that it doesn't know, so a slip
of the pen would train something else: here it is an error before the first step.
"""

import ast
import copy
import difflib
import importlib.util
import inspect
import os
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Set
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config, ConfigDict
from mmengine.fileio import register_handler
from mmengine.fileio.handlers import YamlHandler
from mmengine.registry import DefaultScope, Registry, init_default_scope
from mmengine.runner import Runner, set_random_seed
from mmengine.utils import import_modules_from_strings

from .files import TRACEBACK_VARIABLE, home, installed
from .text import one_line, option_value

DATA_SUFFIXES = ('.yaml', '.yml', '.json')

# Keys that Config.fromfile reads, or the Runner from its `cfg`, beside the Runner's arguments.
_KEYS_BESIDE_RUNNER = {
    'activation_checkpointing',
    'compile',
    'custom_imports',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
}
# What mmpretrain's tools read: `data_preprocessor` goes into the model, the others serve its own tools.
_KEYS_OF_MMPRETRAIN = {'data_preprocessor', 'tta_model', 'tta_pipeline'}
# What configs of MMClassification 0.x set; some that come with mmpretrain still do, and nothing has read it since.
_KEYS_OF_OLD = {
    'checkpoint_config',
    'data',
    'dist_params',
    'evaluation',
    'fp16',
    'log_config',
    'lr_config',
    'optimizer',
    'optimizer_config',
    'resume_from',
    'runner',
    'workflow',
}

# Names that configs of mmpretrain set and nothing reads.
_UNREAD_IN_MMPRETRAIN = {'bgr_std'}

# What builds a dict that names no type: top-level keys of the config.
_DEFAULT_TYPES = {
    'val_cfg': 'ValLoop',
    'test_cfg': 'TestLoop',
    'optim_wrapper': 'OptimWrapper',
    'log_processor': 'LogProcessor',
    'data_preprocessor': 'ClsDataPreprocessor',
    'model.data_preprocessor': 'ClsDataPreprocessor',
}
_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_KEYS_OF_LOADERS = {'batch_size', 'collate_fn', 'dataset', 'num_batch_per_epoch', 'sampler', 'batch_sampler'}
# Arguments that the builders take, by registry, beside those of the class.
_KEYS_OF_BUILDERS = {
    'hook': {'priority'},
    'parameter scheduler': {'convert_to_iter_based'},
    'model': {'requires_grad', 'init_cfg', 'pretrained'},  # of norm layers, of modules, of old classifiers
    'transform': {'magnitude_key', 'magnitude_range', 'magnitude_std'},  # RandAugment's policies
    'weight initializer': {'override', '_delete_', 'layer'},
    'optim wrapper': {'optimizer', 'constructor', 'paramwise_cfg'},
}
_STRICT = {'hook', 'loop', 'optimizer', 'optim wrapper', 'parameter scheduler', 'metric'}
_KEYS_OF_TABLES = {
    'auto_scale_lr': {'enable', 'base_batch_size'},
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
}
_MORE_THAN_TEXT = {'loss_scale'}  # is annotated as text, and may be a number
_COUNTS = {  # key: smallest value
    'train_cfg.max_epochs': 1,
    'train_cfg.max_iters': 1,
    'train_cfg.val_interval': 1,
    'train_cfg.val_begin': 0,
    **{f'{loader}.batch_size': 1 for loader in _LOADERS},
    **{f'{loader}.num_workers': 0 for loader in _LOADERS},
}
_BACKENDS = {  # visualization backends, and the package that each needs
    'AimVisBackend': 'aim',
    'ClearMLVisBackend': 'clearml',
    'DVCLiveVisBackend': 'dvclive',
    'MLflowVisBackend': 'mlflow',
    'NeptuneVisBackend': 'neptune',
    'TensorboardVisBackend': 'tensorboard',
    'WandbVisBackend': 'wandb',
}


class SafeYamlHandler(YamlHandler):
    """mmengine's reader of YAML, without ``!!python/object`` and its like."""

    def load_from_fileobj(self, file, **kwargs):
        return yaml.safe_load(file)


def find_file(name: str, folder: str = 'configs', what: str = 'config') -> str:
    """The file ``name``, or where there is none, the one that ships: by its path, or by its bare name in ``folder``.

    Raises:
        OSError: if there is neither, naming those that there are.
    """
    path, bare = installed(name), name.removesuffix('.py')
    shipped = {file.stem: str(file) for file in sorted((home() / folder).glob('*.py'))}
    if os.path.isfile(path):
        return path
    if bare in shipped:
        return shipped[bare]
    if os.path.isdir(name):
        raise IsADirectoryError(f'{name}: is a folder, no {what} file')
    place = os.path.dirname(name) or home() / folder
    beside = sorted({file.stem for root in (Path(), home()) for file in (root / place).glob('*.py')})
    close = difflib.get_close_matches(Path(bare).name, {*beside, *shipped}, 3)
    others = f'did you mean {" or ".join(close)}?' if close else f'there are {", ".join(beside) or "none there"}'
    raise FileNotFoundError(f'{name}: no such {what} file; {others}')


def load_config(path: str, options: dict | None = None) -> Config:
    """The mmengine ``Config`` that :func:`find_file` finds, with ``options`` set as :func:`override` does.

    Its scope becomes the default, and mmengine reads YAML as data from then on.

    Names that only the config's text reads (``data_root = ...``) have done their work and are left out.

    Raises:
        ValueError: for a config that doesn't load, a key that nothing reads, at the top or within, a value of the
            wrong kind, or an option that does not fit; OSError if there is no such file.
    """
    path = find_file(path)
    suffix = Path(path).suffix
    if suffix not in ('.py', *DATA_SUFFIXES):
        raise ValueError(f'{path}: a config is a .py, .yaml, .yml or .json file')
    register_handler(['yaml', 'yml'])(SafeYamlHandler)
    try:
        files: dict = {}
        _collect_files(os.path.abspath(path), files)
        for file in files:
            if file.endswith(DATA_SUFFIXES):
                _check_plain(file)
        config = Config.fromfile(path, import_custom_modules=False)
        if any(file.endswith(DATA_SUFFIXES) for file in files):
            _check_names_of_data(config)
        if config.get('custom_imports'):
            import_modules_from_strings(**config['custom_imports'])
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
        if config.get('custom_imports'):
            import_modules_from_strings(**config['custom_imports'])
    except Exception as error:  # text of any kind
        raise ValueError(f'{name}: the config of its run is not read ({one_line(error)}); name one') from error
    return completed(config, set(config), options)


def _plain(node: ast.expr) -> Any:
    """The value that literals and ``dict(...)`` have without being run."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        return {keyword.arg: _plain(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict) and len(keys := [key for key in node.keys if key]) == len(node.values):
        return {_plain(key): _plain(value) for key, value in zip(keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_plain(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f'line {node.lineno} is code: {ast.unparse(node)[:60]}') from None


def completed(config: Config, read: Set[str] = frozenset(), options: dict | None = None) -> Config:
    """``config`` as tools take it: its scope the default, what its text alone reads left out, ``options`` set, checked.

    Args:
        read: as of :func:`check_keys_are_read`.
    """
    config.default_scope = config.get('default_scope') or 'mmpretrain'  # mmengine's Runner would take its own
    init_default_scope(config.default_scope)
    check_keys_are_read(config, read)
    for key in list(config):
        if key not in known_keys():
            config.pop(key)
    if options:
        config = override(config, options, from_command_line=True)
    _complete(config)
    check_config(config)
    return config


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
        hint = '' if os.environ.get(TRACEBACK_VARIABLE) else f' ({TRACEBACK_VARIABLE}=1 shows where)'
        raise ValueError(f'{name}: {what}: {type(error).__name__}: {one_line(error)[:400]}{hint}') from error


def require_data(config: Config, loader: str) -> None:
    """Raise ValueError unless the config has ``loader`` (``'test_dataloader'``) and what goes with it."""
    part = loader.split('_')[0]
    if part == 'train':
        missing = [key for key in (loader, 'train_cfg', 'optim_wrapper') if config.get(key) is None]
        if missing:
            raise ValueError(f'{config.filename or "the config"}: nothing to train: {", ".join(missing)} missing')
        return
    missing = [key for key in (loader, f'{part}_evaluator', f'{part}_cfg') if config.get(key) is None]
    if missing:
        raise ValueError(
            f'{config.filename or "the config"}: has no {part} set: {", ".join(missing)} missing; '
            f'in a config on our bases: {part}_dataloader = val_dataloader'
        )


# -- reading files ------------------------------------------------------------------------------


def _collect_files(path: str, files: dict[str, set[str]]) -> None:
    """Fill ``files`` with the config at ``path`` and all its bases, each with the names that its text reads."""
    if path in files:
        return
    text = Path(path).read_text(encoding='utf-8')
    read = set(re.findall(r'\{\{\s*_base_\.(\w+)', text))
    files[path] = read
    if not path.endswith('.py'):
        bases = Config._get_base_files(path)
    else:
        try:
            tree = ast.parse(text)
        except SyntaxError:  # perhaps a placeholder of mmengine's
            tree = ast.parse(re.sub(r'\{\{[^{}]*\}\}', '0', text))
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                read.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == '_base_':
                read.add(node.attr)
        if Config._is_lazy_import(path):
            for module in Config._get_base_modules(tree.body):
                _collect_files(_module_file(module, path), files)
            return
        bases = Config._get_base_files(path)
    for base in bases:
        _collect_files(os.path.abspath(Config._get_cfg_path(base, path)[0]), files)


def _module_file(module: str, path: str) -> str:
    """The file of a ``read_base()`` import, absolute or relative to the config at ``path``."""
    dots = len(module) - len(module.lstrip('.'))
    if dots:
        folder = Path(path).parents[dots - 1]
        return str(folder.joinpath(*module[dots:].split('.')).with_suffix('.py'))
    package, *rest = module.split('.')
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f'read_base() imports {module}, but {package} is not installed')
    return str(Path(spec.origin).parent.joinpath(*rest).with_suffix('.py'))


def _where(error: Exception) -> str:
    """The line of a config at which ``error`` came up, where that is known."""
    trace, found = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_name == '<module>' and trace.tb_frame.f_code.co_filename.endswith('.py'):
            found = trace
        trace = trace.tb_next
    name = '' if isinstance(error, (ValueError, OSError)) else f'{type(error).__name__}: '
    if found is None or '/site-packages/' in found.tb_frame.f_code.co_filename:
        return name
    return f'line {found.tb_lineno} of {Path(found.tb_frame.f_code.co_filename).name}: {name}'


def _check_plain(path: str) -> None:
    """Refuse a YAML or JSON config that is more than data: object tags, imports from anywhere."""
    text = Path(path).read_text(encoding='utf-8')
    if path.endswith('.json') or '{{' in text:  # placeholders are no YAML yet; mmengine loads it, by the safe handler
        return
    try:
        yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = 'holds Python objects' if 'python/' in str(error) else 'is no YAML'
        raise ValueError(f'{reason} ({one_line(error)[:200]}); write a Python config if you mean code') from None


def _check_names_of_data(config: Config) -> None:
    """Raise ValueError for a ``type`` that is a path of Python (``os.system``), and for imports from anywhere."""
    modules = config.get('custom_imports', {}).get('imports', [])
    for module in [modules] if isinstance(modules, str) else modules:
        if module.split('.')[0] not in ('mobileone_ext', 'mmpretrain', 'mmengine', 'mmcv'):
            raise ValueError(f'custom_imports of {module}: only a Python config may import it')
    for key, node in _typed(config):
        name = node.get('type')
        if isinstance(name, str) and '.' in name and not _registered(name):
            raise ValueError(f'{key}.type={name!r}: no registered part; only a Python config may name others')


def _with_names_as_types(config: Config) -> Config:
    """A config by ``read_base()`` as text configs are: registered names instead of classes."""
    if not hasattr(config, '_imported_names'):
        return config
    import mmpretrain  # noqa: F401
    from mmpretrain.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    names: dict = {}
    for registry in _registries():
        for name, part in registry.module_dict.items():
            if inspect.isclass(part) or inspect.isfunction(part):
                names.setdefault(part, name if registry.scope == 'mmengine' else f'{registry.scope}.{name}')

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(value[key]) for key in value}
        if isinstance(value, (list, tuple)):
            return type(value)(named(item) for item in value)
        if inspect.isclass(value) or inspect.isfunction(value):
            return names.get(value, value)
        return value

    imported = config._imported_names
    values = {key: named(config[key]) for key in config if key not in imported}
    return Config(values, filename=config.filename)


# -- which keys are read ------------------------------------------------------------------------


def known_keys() -> set[str]:
    """The top-level keys that the Runner, mmpretrain or a tool reads."""
    arguments = set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}
    return arguments | _KEYS_BESIDE_RUNNER | _KEYS_OF_MMPRETRAIN


def check_keys_are_read(config: Config, read: Set[str] = frozenset()) -> None:
    """Raise ValueError for a top-level key that neither the Runner, a tool nor the config's text reads.

    Args:
        read: the names that the text of the config or of its bases reads.
    """
    known = known_keys()
    if config.get('runner_type', 'Runner') != 'Runner':
        raise ValueError(f"config key 'runner_type': {config['runner_type']} is another program; here Runner trains")
    for key in config:
        if key in known or key in read or key in _UNREAD_IN_MMPRETRAIN or key == 'runner_type':
            continue
        if key in _KEYS_OF_OLD and 'model' in config:
            print(f'config key {key!r} is one of MMClassification 0.x and has no effect')
            continue
        raise ValueError(f'config key {key!r}: nothing reads it{hint(key, known)}')


def hint(key: str, known: typing.Iterable[str], what: str = 'known keys are') -> str:
    """What ``key`` may have meant: the nearest of ``known``, or some of them."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(key, known, 1)
    if close:
        return f'; did you mean {close[0]!r}?'
    if not known:
        return ''
    shown = ', '.join(known[:8])
    return f'; {what} {shown}{f" and {len(known) - 8} more" if len(known) > 8 else ""}'


def check_config(config: Config) -> None:
    """Raise ValueError for a nested key that nothing reads, or a value that is no such number.

    Looked up in the signatures of the classes that the config names; a class that takes any argument is let through.
    """
    for key, smallest in _COUNTS.items():
        _check_count(config, key, smallest)
    for key, node in _typed(config):
        _check_node(key, node)
    for backend in _listed((config.get('visualizer') or {}).get('vis_backends')):
        package = _BACKENDS.get(_type_name(backend))
        if package and importlib.util.find_spec(package) is None:
            raise ValueError(
                f'visualizer.vis_backends: {_type_name(backend)} needs {package}, which is not installed: '
                f'pip install {package}, or leave it out'
            )


def _check_count(config: Config, key: str, smallest: int) -> None:
    *path, last = key.split('.')
    node = config.get(path[0])
    if not isinstance(node, dict) or node.get(last) is None:
        return
    value = node[last]
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise ValueError(f'{key}={value!r}: a whole number from {smallest} on is needed')


def _check_node(key: str, node: dict) -> None:
    known = _known_arguments(key, node)
    if known is None:
        return
    _refuse_unknown(key, node, known)
    classes = _parts(key, node)
    # Annotations of models and transforms are loose: `int` may mean a pair as well.
    strict = all(registry.name.replace('_', ' ') in _STRICT for registry, _ in classes)
    for name, value in node.items():
        if isinstance(value, float) and node.get('convert_to_iter_based'):
            continue  # a place within an epoch
        kinds = [_numbers_alone(part, name) for _, part in classes]
        if kinds and all(kinds) and (strict or _is_slip(value, set().union(*kinds))):
            _check_number(f'{key}.{name}', value, set().union(*kinds))


def _known_arguments(key: str, node: dict) -> set[str] | None:
    """What reads the keys of ``node`` at the place ``key`` knows; None if that is anything, or isn't known."""
    if key in _LOADERS:
        from torch.utils.data import DataLoader

        return set(inspect.signature(DataLoader.__init__).parameters) - {'self'} | _KEYS_OF_LOADERS
    if key == 'randomness':
        return set(inspect.signature(set_random_seed).parameters)
    if key in _KEYS_OF_TABLES:
        return _KEYS_OF_TABLES[key]
    classes = _parts(key, node)
    known = {'type', '_scope_'} | ({'by_epoch'} if key == 'train_cfg' else set())
    for registry, part in classes:
        arguments = _arguments(part)
        if 'ema_type' in arguments:  # EMAHook passes the rest on to the average that it builds
            for _, average in _find(node.get('ema_type', 'ExponentialMovingAverage')):
                arguments = arguments - {'**'} | _arguments(average) - {'model', 'device'}
        if _type_name(node) == 'CheckpointHook':  # passes the rest on
            arguments = arguments - {'**'} | set(inspect.signature(Runner.save_checkpoint).parameters)
        if '**' in arguments:
            return None
        known |= arguments | _KEYS_OF_BUILDERS.get(registry.name.replace('_', ' '), set())
    return known if classes else None


def _parts(key: str, node: dict) -> list[tuple[Registry, Any]]:
    """The registered parts that may be built from ``node`` at the place ``key``."""
    found = _find(node.get('type') or _default_type(key, node))
    place = key.rsplit('.', 1)[-1]
    kind = 'dataset' if place == 'dataset' else 'metric' if place.endswith('_evaluator') else None
    return [pair for pair in found if kind in (None, pair[0].name)]


def _refuse_unknown(key: str, node: dict, known: set[str]) -> None:
    for name in node:
        if name not in known and name != 'type':
            raise ValueError(f'config key {f"{key}.{name}"!r}: nothing reads it{hint(name, known)}')


def _is_slip(value: Any, kinds: set) -> bool:
    """Whether ``value`` is text that was meant as one of ``kinds``: '0,1' for a number, 'flase' for a boolean."""
    if not isinstance(value, str):
        return False
    return bool(difflib.get_close_matches(value.lower(), ['true', 'false'], 1)) if kinds == {bool} else True


def _check_number(key: str, value: Any, kinds: set) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, (str, list, tuple, dict)):
        expected = 'true or false' if kinds <= {bool} else 'a whole number' if float not in kinds else 'a number'
        pair = isinstance(value, (list, tuple)) and len(value) == 2
        comma = ' (a decimal comma?)' if pair or re.fullmatch(r'-?\d+,\d+', str(value)) else ''
        raise ValueError(f'{key}={value!r}{comma}: {expected} is needed')
    if isinstance(value, float) and float not in kinds and int in kinds and value != int(value):
        raise ValueError(f'{key}={value!r}: a whole number is needed')


def _numbers_alone(part: Any, name: str) -> set:
    """The kinds of number that argument ``name`` of ``part`` takes; empty if it may take anything else."""
    kinds = _kinds(part, name)
    return kinds if kinds <= {int, float, bool} else set()


def _kinds(part: Any, name: str) -> set:
    """The types that argument ``name`` of ``part`` is annotated with, None and tensors left out; empty if unknown."""
    for cls in inspect.getmro(part) if inspect.isclass(part) else ():
        if '__init__' not in vars(cls):
            continue
        parameter = inspect.signature(vars(cls)['__init__']).parameters.get(name)
        if parameter is None:
            continue
        try:
            annotation = typing.get_type_hints(vars(cls)['__init__']).get(name)
        except Exception:
            return set()
        union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
        kinds = set(typing.get_args(annotation)) if union else {annotation}
        return {kind for kind in kinds if getattr(kind, '__name__', '') not in ('NoneType', 'Tensor')}
    return set()


def _typed(config: Config) -> Iterator[tuple[str, dict]]:
    """Every dict of the config that something is built from, with its place; parts without a type as well."""

    def walk(value: Any, key: str) -> Iterator[tuple[str, dict]]:
        if isinstance(value, dict):
            if 'type' in value or '.' not in key or _default_type(key, value):
                yield key, value
            for name, child in value.items():
                yield from walk(child, f'{key}.{name}')
        elif isinstance(value, (list, tuple)):
            for index, child in enumerate(value):
                yield from walk(child, f'{key}.{index}')

    for key in config:
        yield from walk(config[key], key)


def _default_type(key: str, node: dict) -> str | None:
    if key == 'train_cfg' and 'type' not in node:
        return 'EpochBasedTrainLoop' if node.get('by_epoch', True) else 'IterBasedTrainLoop'
    return _DEFAULT_TYPES.get(key)


def _registries() -> list[Registry]:
    """Every registry that is known: mmengine's and all their children."""
    from mmengine import registry as mmengine
    from mmpretrain import registry as mmpretrain

    from . import registry as ours

    for module in (mmpretrain, ours):
        for value in vars(module).values():
            if isinstance(value, Registry):
                value.import_from_location()
    found, waiting = [], [value for value in vars(mmengine).values() if isinstance(value, Registry)]
    while waiting:
        registry = waiting.pop()
        found.append(registry)
        waiting.extend(registry.children.values())
    return found


def _find(name: Any) -> list[tuple[Registry, Any]]:
    """The registered parts that ``type=name`` may mean, in the default scope; a class means itself."""
    if name is None:
        return []
    registries = _registries()
    if not isinstance(name, str):
        return [(registry, name) for registry in registries if name in registry.module_dict.values()]
    scope, short = Registry.split_scope_key(name)
    if scope is None:
        current = DefaultScope.get_current_instance()
        scopes = [current.scope_name if current else 'mmpretrain', 'mmengine']
    else:
        scopes = [scope]
    for scope in scopes:
        found = [(r, r.module_dict[short]) for r in registries if r.scope == scope and short in r.module_dict]
        if found:
            return found
    return []


def _registered(name: str) -> bool:
    scope, short = Registry.split_scope_key(name)
    return any(r.scope == scope and short in r.module_dict for r in _registries())


def _arguments(part: Any) -> set[str]:
    """The arguments of a registered part; with ``'**'`` if it takes any, or says nothing of them."""
    names: set[str] = set()
    if not inspect.isclass(part):
        parameters = inspect.signature(part).parameters.values()
        return {p.name if p.kind is not p.VAR_KEYWORD else '**' for p in parameters}
    for cls in inspect.getmro(part):
        if cls is object or '__init__' not in vars(cls):
            continue
        try:
            parameters = inspect.signature(vars(cls)['__init__']).parameters.values()
        except ValueError:  # written in C
            return names | {'**'}
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {'self'}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names
        if not _goes_to_base(cls):
            break
    return names | {'**'}


@lru_cache
def _goes_to_base(cls: type) -> bool:
    """Whether ``**kwargs`` of ``cls`` go to no other call than its base's ``__init__``."""
    function: Any
    try:
        (function,) = ast.parse(textwrap.dedent(inspect.getsource(vars(cls)['__init__']))).body
    except (OSError, TypeError, SyntaxError):  # made while running
        return True
    rest = function.args.kwarg.arg
    calls = (node for node in ast.walk(function) if isinstance(node, ast.Call))
    takers = [c.func for c in calls for k in c.keywords if k.arg is None and getattr(k.value, 'id', None) == rest]
    return all(getattr(taker, 'attr', None) == '__init__' for taker in takers)


# -- completing ---------------------------------------------------------------------------------


def _complete(config: Config) -> None:
    """What mmpretrain's own tools put into a config before they run it."""
    top = config.pop('data_preprocessor', None)
    model = config.get('model')
    if top and isinstance(model, dict) and 'data_preprocessor' not in model:
        model['data_preprocessor'] = top
    for name in _LOADERS:
        loader = config.get(name)
        if isinstance(loader, dict):
            loader.setdefault('collate_fn', ConfigDict(type='default_collate'))
            if loader.get('num_workers', 0) == 0:
                loader['persistent_workers'] = False


# -- overriding ---------------------------------------------------------------------------------


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
            and None is a value like others where something reads the key; else text is text, and None takes any key
            of a dict away.

    Raises:
        ValueError: naming a key that leads nowhere or that nothing would read, or what another ``type`` does not read.
    """
    config = copy.deepcopy(config)
    if config.get('custom_hooks') is None:
        config['custom_hooks'] = []  # a list to mmengine as well, where a config has none
    for key, value in overrides.items():
        if key in ('train_cfg.max_epochs', 'train_cfg.max_iters') and not callable(value):
            length = option_value(value) if from_command_line and isinstance(value, str) else value
            config = _follow_length(config, key, length, overrides)
    changed: list[tuple[dict, str, str]] = []
    for key, value in overrides.items():
        *path, last = key.split('.')
        value = value(config) if callable(value) else value
        node = config
        for depth, part in enumerate(path):
            node = _child(node, part, key, '.'.join(path[:depth]))
        if from_command_line and isinstance(value, str):
            value = _read_option(value, node, last, '.'.join(path))
        if isinstance(node, list):
            _set_in_list(node, last, copy.deepcopy(value), key)
            continue
        _check_known(node, last, key, '.'.join(path))
        if value is None and not from_command_line:
            node.pop(last, None)
        else:
            node[last] = copy.deepcopy(value)
            changed.append((node, '.'.join(path), last))
    for node, place, last in changed:
        known = _known_arguments(place, node)
        if node.get(last, 0) is None and known is not None and last not in known:
            node.pop(last)
    for node, place, last in changed:
        if last == 'type':
            _check_type(place, node)
    return config


def _check_type(place: str, node: dict) -> None:
    """Raise ValueError if the new ``type`` of ``node`` doesn't read what the config has beside it."""
    known = _known_arguments(place, node)
    unread = [name for name in node if name not in known] if known is not None else []
    if unread:
        raise ValueError(
            f'override {f"{place}.type"!r}: {_type_name(node)} does not read {", ".join(unread)}, which the config '
            f'sets; {" ".join(f"{place}.{name}=None" for name in unread)} leaves that out'
        )


def _read_option(text: str, node: dict | list, last: str, place: str) -> Any:
    """What ``text`` means for ``last`` at ``place``: as written, but for quotes, where its reader takes text alone."""
    if isinstance(node, list):
        return option_value(text)
    value = option_value(text, words=isinstance(node.get(last), (list, tuple)))
    readers = [Runner] if isinstance(node, Config) else [part for _, part in _parts(place, node)]
    takes_text = readers and all(_kinds(part, last) == {str} for part in readers) and last not in _MORE_THAN_TEXT
    return text if takes_text and not isinstance(value, str | None) else value


def _follow_length(config: Config, key: str, value: Any, overrides: dict[str, Any]) -> Config:
    from .recipe.schedule import for_length

    loop, name = config.get('train_cfg') or {}, key.split('.')[1]
    other, what = ('max_iters', 'iterations') if name == 'max_epochs' else ('max_epochs', 'epochs')
    if name not in loop and loop.get(other) and {'train_cfg.type', 'train_cfg.by_epoch'}.isdisjoint(overrides):
        raise ValueError(f'{key}={value!r}: the config trains by {what}, train_cfg.{other}=N')
    old = loop.get(name)
    if not isinstance(old, int) or isinstance(value, bool) or not isinstance(value, int) or min(value, old) < 1:
        return config  # nothing to follow; a value that is no count is refused with the others
    given = {part for part in ('param_scheduler', 'custom_hooks') if any(k.split('.')[0] == part for k in overrides)}
    return for_length(config, value, keep=given)


def _child(node: dict | list, part: str, key: str, place: str) -> dict | list:
    if isinstance(node, list):
        index = _index(node, part, key)
        if index is None:
            raise ValueError(f'override {key!r}: nothing of type {part!r} there; there are {_names(node)}')
        child = node[index]
    else:
        if node.get(part) is None:
            _check_known(node, part, key, place, f'no {part!r} there')
            node[part] = ConfigDict()
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


def _check_known(node: dict, last: str, key: str, place: str, problem: str = '') -> None:
    """Raise ValueError unless ``node`` has the key ``last``, or something reads one of that name there."""
    if last in node:
        return
    if isinstance(node, Config):
        known = known_keys() - {'data_preprocessor'}
        if last not in known:
            raise ValueError(
                f'override {key!r}: no {last!r} there and nothing reads it{hint(last, known)} '
                "(a variable of the config's text is gone by then: name the key that it went to)"
            )
        return
    arguments = _known_arguments(place, node)
    if arguments is not None and last not in arguments:
        problem = problem or f'nothing reads {last!r} there'
        raise ValueError(f'override {key!r}: {problem}{hint(last, arguments)}')


def _listed(value: Any) -> list | tuple:
    return value if isinstance(value, (list, tuple)) else []


def _type_name(item: Any) -> str:
    name = item.get('type', '') if isinstance(item, dict) else ''
    return str(getattr(name, '__name__', name)).rsplit('.', 1)[-1]


def _names(items: list[dict]) -> str:
    return ', '.join(filter(None, map(_type_name, items))) or 'none'
