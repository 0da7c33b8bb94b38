"""Networks that say themselves what they take: exported files, checkpoints of a run, a run's folder, published weights.

An exported file says it in its metadata; a run's checkpoints and its folder have the run's config, which is read as
data: nothing in it runs.
"""

import os
import re
from argparse import Namespace
from collections.abc import Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..checkpoints.load import read_checkpoint
from ..checkpoints.names import PUBLISHED, resolve
from ..config import completed, load_config, resolved_config
from ..config.keys import known_keys
from ..data.classes import LOADERS, class_names, is_multi_label, labels, num_classes
from ..data.nested import datasets_of
from ..data.pixels import Preprocessing
from ..metadata import Metadata, fit_of
from ..provenance import origin
from ..text import printable
from .runtime import file_of, is_exported, open_network

# Of a run's config; the rest, and what became of it since, does not matter to those who have the network alone.
_USE = {'custom_imports', 'data_preprocessor', 'default_scope', 'model', 'test_dataloader', 'val_dataloader'}
_OF_THE_RUN = {'experiment_name', 'launcher', 'load_from', 'resume', 'work_dir'}  # which are of no other


class Described(NamedTuple):
    """A network with the config that goes with it.

    Attributes:
        config: the model, how its images are prepared, and maybe more.
        path: the checkpoint or exported file.
        note: where they were found, or what is assumed; empty where the user named all of it.
    """

    config: Config
    path: str
    note: str = ''


def find_network(
    name: str | Path,
    config: str | Config | None = None,
    otherwise: str | None = None,
    options: dict | None = None,
    trust: bool = False,
    whole: bool = False,
) -> Described:
    """The network that is called ``name``: a checkpoint, an exported file, a run's folder, or published weights.

    Args:
        config: of the network, its path, or the folder of a run whose it is; None takes what the file says itself.
        otherwise: path of the config of a file that says nothing; None asks for one that does.
        options: as of :func:`mobileone_ext.config.load_config`.
        trust: as of :func:`mobileone_ext.checkpoints.load.load_weights`.
        whole: the config of a run is to have all that it trained and was measured with, its photos among it.

    Raises:
        OSError: if there is no such file.
        ValueError: if nothing says which images it takes, or what says it is not to be read.
    """
    path = file_of(str(name))
    if isinstance(config, str) and os.path.isdir(config):
        config = find_network(config, options=options, trust=trust, whole=whole).config
    if config is not None:
        return Described(load_config(config, options) if isinstance(config, str) else config, path)
    try:
        if is_exported(path):
            said = Metadata.read(open_network(path).metadata)
            found = (config_of(said, path, options), said.note) if said.is_enough else None
        else:
            found = _config_of_checkpoint(path, options, trust, known_keys() - _OF_THE_RUN if whole else _USE)
    except ValueError:
        if otherwise is None:
            raise
        found = None
    if found:
        return Described(found[0], path, f'{path}: {found[1]}')
    if otherwise is None:
        raise ValueError(f'{path}: does not say which images it takes; name its config (--help says how)')
    return Described(load_config(otherwise, options), path)


def named_network(args: Namespace, whole: bool = True) -> tuple[Config, str]:
    """Config and file of what :func:`mobileone_ext.cli.add_network_arguments` read; where they were found is printed.

    Args:
        whole: as of :func:`find_network`.
    """
    how = dict(options=args.cfg_options, trust=args.trust_checkpoint, whole=whole)
    config, path, note = find_network(args.network, args.config, **how)
    if note:
        print(printable(note))
    return config, path


def _config_of_checkpoint(path: str, options: dict | None, trust: bool, keys: Set[str]) -> tuple[Config, str] | None:
    """The config of the run that wrote a checkpoint, in it or beside it; of published weights, the one that ships."""
    if path in PUBLISHED:
        variant = re.search(r'mobileone[_-](s\d)', path)[1]
        return load_config(f'mobileone_{variant}_8xb32', options), 'published weights, prepared as for ImageNet'
    checkpoint = read_checkpoint(path, trust)
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    meta = meta if isinstance(meta, dict) else {}
    text = meta.get('config') or meta.get('cfg')
    if isinstance(text, str):
        config = _of_a_run(text, path, options, keys)
        _move_lists(config, Path(path).absolute().parent)
        return config, "described by its run's config, which is in it"
    beside = sorted(Path(path).parent.glob('*.py'))
    beside = [file for file in beside if file.name.startswith('resolved_')] or beside
    if len(beside) != 1:
        return None
    try:
        config = _of_a_run(beside[0].read_text(encoding='utf-8'), str(beside[0]), options, keys)
    except ValueError:  # some other program
        return None
    return config, f'described by {beside[0].name}, which is beside it'


def _of_a_run(text: str, name: str, options: dict | None, keys: Set[str]) -> Config:
    config = resolved_config(text, name, options, keys)
    if not config.get('test_dataloader'):
        for part in ('cfg', 'dataloader', 'evaluator'):
            config[f'test_{part}'] = config.get(f'val_{part}')
    return config


def _move_lists(config: Config, folder: Path) -> None:
    """Photos, and lists of them that lie in the run's ``folder``, which are gone from where ``config`` has them: the
    run has moved, or was copied, maybe with its photos."""
    for dataset, _ in datasets_of(config, *LOADERS):
        there = Path(dataset.get('ann_file') or '.')
        here, root = folder / there.name, dataset.get('data_root') or '.'
        if there.is_absolute() and here.is_file():
            moved = os.path.normpath(folder / os.path.relpath(root, there.parent))
            if not os.path.isdir(root) and os.path.isdir(moved):
                dataset['data_root'] = moved
            if not there.exists():
                dataset['ann_file'] = str(here)


def config_of(metadata: Metadata, path: str, options: dict | None = None) -> Config:
    """A config of what the file ``path`` says of itself: names, mean and std, how images are resized and cropped."""
    init_default_scope('mmpretrain')  # where the steps of its pipeline are looked up
    config = Config(
        dict(
            model=dict(
                type='ImageClassifier',
                data_preprocessor=dict(mean=metadata.mean, std=metadata.std, to_rgb=metadata.channels == 'RGB'),
                head=dict(
                    type='MultiLabelLinearClsHead' if metadata.labels_of_an_image == 'several' else 'LinearClsHead',
                    num_classes=len(metadata.labels or ()),
                    in_channels=1,
                ),
            ),
            test_dataloader=dict(dataset=dict(pipeline=metadata.pipeline(), metainfo=dict(classes=metadata.names))),
        ),
        cfg_text=path,
        filename=path,
    )
    return completed(config, options=options)


def describe(
    preprocessing: Preprocessing, names: Sequence[str] | None, source: str | Path, said: Metadata | None = None
) -> Metadata:
    """What a classifier made of the file ``source`` says of itself, whatever form it takes.

    Args:
        names: of its classes; None takes the config's.
        said: what the source says of itself, of which temperature and threshold stay.
    """
    config, made_of = preprocessing.config, origin(resolve(source), 'torch', 'mmengine')
    labels_ = labels(names or class_names(config), num_classes(config) or 0)
    channels = 'RGB' if preprocessing.to_rgb else 'BGR'
    told = dict(labels=labels_, channels=channels, mean=preprocessing.mean, std=preprocessing.std, **made_of)
    with suppress(ValueError):  # no pipeline
        told |= fit_of(preprocessing.pipeline)
    told |= dict(temperature=said.temperature, threshold=said.threshold) if said else {}
    return Metadata(**told, labels_of_an_image='several' if is_multi_label(config) else None)
