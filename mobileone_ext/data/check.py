"""Is the data what the config says? Set right before it is built, asked once when it is.

What can be put right without a doubt is put right and said: labels of another folder's
classes by name, top-k of more classes than there are.
"""

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmpretrain.datasets import CustomDataset as MmpretrainDataset
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import BatchSampler, DataLoader

from ..provenance import rank
from ..text import quoted
from .classes import (
    LOADERS,
    annotation_file,
    are_same,
    check_same,
    dataset_class,
    given_names,
    names_of,
    num_classes,
    scanned_folder,
    shards_of,
)
from .dataset import CustomDataset, ImageNet
from .images import class_folders, names_of_folders, spread
from .nested import datasets_of, innermost

LOOKED_FOR = 2000  # so many images of a data set have to be there


def prepare_data(config: Config, *loaders: str, classes: Sequence[str] | None = None) -> None:
    """Let the data sets of ``loaders`` (``'train_dataloader'``, ...) be read by ours, and their labels agree by name.

    Args:
        classes: names of the outputs of the weights to be measured, if known; by default the training set's.

    Raises:
        OSError, ValueError: naming the data that is not there or whose classes are others, and the option that sets it.
    """
    count = num_classes(config)
    for name in loaders:
        if name == 'train_dataloader':
            continue
        if config.get(name) and config[name].get('drop_last'):
            config[name]['drop_last'] = False
            say(f'{name}.drop_last=True would leave images out of the figures: it is ignored')
        fit_metrics(config, name.replace('dataloader', 'evaluator'), count)
    datasets = {name: [*datasets_of(config, name)] for name in LOADERS}
    for dataset, _ in chain(*datasets.values()):
        read_by_files(dataset, count)
    train = next((names_of(dataset) for dataset, _ in datasets['train_dataloader']), None)
    reference = (classes, 'the checkpoint') if classes else (train, 'the training set')
    for dataset, option in chain(*(datasets[name] for name in loaders)):
        _look_for_data(dataset, option)
        _label_by_name(dataset, option, *reference)


def read_by_files(dataset: dict, count: int | None = None) -> None:
    """Let ours read a data set of mmpretrain's that goes by folders or by a list, from the same files.

    Args:
        count: classes of the head. Ours keeps the names of ``ImageNet`` if it has as many, and
            does not take over a data set that is bound to as many others.
    """
    kind = dataset_class(dataset)
    if not (isinstance(kind, type) and issubclass(kind, MmpretrainDataset)):
        return
    bound = kind.METAINFO.get('classes')
    fits, imagenet = bool(bound) and len(bound) == count, bound is ImageNet.METAINFO['classes']
    if (fits and not imagenet) or (issubclass(kind, CustomDataset) and (fits or not imagenet)):
        return
    listed, split = annotation_file(dataset), dataset.pop('split', '')
    dataset['type'] = f'mobileone_ext.{"ImageNet" if fits else "CustomDataset"}'
    if split:
        dataset['data_prefix'] = dataset.get('data_prefix') or split
    if listed and not dataset.get('ann_file'):
        dataset['ann_file'] = f'meta/{split}.txt'


def say(line: str) -> None:
    """Print a line, once for all processes of a run."""
    if rank() == 0:
        print(line, flush=True)


def _look_for_data(dataset: dict, option: str) -> None:
    if dataset.get('indices') in (0, [], ()):  # mmengine fails without a word of it
        raise ValueError(f'{option}.indices={dataset["indices"]}: leaves no images')
    root, prefix = dataset.get('data_root'), dataset.get('data_prefix', '')
    if root is None or not isinstance(prefix, str) or '://' in str(root) or shards_of(dataset):
        return  # a data set of another kind speaks for itself
    folder = Path(root, prefix).expanduser()
    another = f'--data ROOT (train, test, ablate) or --cfg-options {option}.data_root=ROOT names another place'
    for path, remedy in (
        (Path(root).expanduser(), another),
        (folder, another),
        (annotation_file(dataset) or folder, f'--cfg-options {option}.ann_file=FILE names another list'),
    ):
        if not path.exists():
            raise FileNotFoundError(
                f'{path}: no such data; expected are class folders {folder}/CLASS with photos, or photos in {folder} '
                f'that an annotation file lists; {remedy}'
            )


def _label_by_name(dataset: dict, option: str, classes: Sequence[str] | None, source: str) -> None:
    """Give class folders the labels of ``classes``, or raise ValueError if ``dataset`` has others than ``source``."""
    names, folder = names_of(dataset), scanned_folder(dataset)
    place = folder or shards_of(dataset)
    if are_same(names, classes):
        return
    if folder is not None and given_names(dataset):
        folders = names_of_folders(class_folders(folder))
        if not set(folders) & set(names) and are_same(folders, classes):
            return  # names for show, of the same folders
    if place is None or given_names(dataset) or not set(names) <= set(classes):
        check_same(names, classes, str(place or annotation_file(dataset) or option), source)
    dataset['classes'] = list(classes)
    if folder is not None:
        dataset['exact'] = True
    if len(set(names)) == len(set(classes)):
        say(f'{place}: labeled in the order of classes of {source}')


def fit_metrics(config: Config, evaluator: str, count: int | None) -> None:
    """Leave out top-k of more classes than there are, which mmpretrain would refuse after an epoch, and say so.

    Raises:
        ValueError: for a metric told of another number of classes.
    """
    metrics = config.get(evaluator) or []
    for metric in [metrics] if isinstance(metrics, dict) else metrics:
        if not count or not isinstance(metric, dict):
            continue
        told = metric.get('num_classes')
        if told is not None and told != count:
            raise ValueError(f'{evaluator}: {metric["type"]} has num_classes={told}, the head has {count}')
        top = metric.get('topk')
        if isinstance(top, int | list | tuple):
            top = [top] if isinstance(top, int) else list(top)
            fitting = [k for k in top if k <= count]
            if len(fitting) < len(top):
                metric['topk'] = tuple(fitting or [1]) if isinstance(metric['topk'], list | tuple) else count
                say(f'{evaluator}: {metric["type"]} of the best {max(top)} needs as many classes, there are {count}: '
                    f'topk={metric["topk"]}')  # fmt: skip


def check_loaders(loaders: dict[str, DataLoader], config: Config) -> None:
    """Check what has been built: images in every loader, labels that the head has, the same classes everywhere.

    Args:
        loaders: data loaders by name, those that a run has; the one that trains is ``train``.

    Raises:
        ValueError: naming the loader and what is wrong with its data.
    """
    count, reference, source = num_classes(config), None, ''
    for name, loader in loaders.items():
        dataset = loader.dataset
        if not len(dataset):
            raise ValueError(f'{name}: its data set is empty')
        names = (getattr(dataset, 'metainfo', None) or {}).get('classes')
        check_same(names, reference, name, source)
        if names and reference is None:
            reference, source = names, name
        parts = list(innermost(dataset))
        for part in parts:
            _check_part(part, name, count)
        if name == 'train' and all(isinstance(part, CustomDataset) for part in parts):
            empty = [label for label in parts[0].empty if all(label in part.empty for part in parts)]
            if empty:
                places = ', '.join(str(Path(part.img_prefix)) for part in parts)
                raise ValueError(f'{places}: no images of {quoted(empty)}: a class that is trained needs some')


def _check_part(dataset, name: str, count: int | None) -> None:
    hint = '; --classes-from-data takes the classes from the data' if name == 'train' else ''
    if isinstance(dataset, CustomDataset):
        empty = [f'no images of {quoted(dataset.empty)}'] if dataset.empty else []
        for note in (*dataset.notes, *empty):
            say(f'{Path(dataset.img_prefix)}: {note}')
    if isinstance(dataset, MmpretrainDataset) and not dataset.ann_file:
        if count and dataset.CLASSES and len(dataset.CLASSES) != count:
            raise ValueError(
                f'{Path(dataset.img_prefix)}: has {len(dataset.CLASSES)} class folders, the head has {count} classes'
                + (hint or f'; --cfg-options model.head.num_classes={len(dataset.CLASSES)} takes these')
            )
        return  # labels are those of the folders
    listed = getattr(dataset, 'ann_file', '')
    for index in spread(range(len(dataset)), LOOKED_FOR) if listed else ():
        path = str(dataset.get_data_info(index).get('img_path') or '')
        if path and '://' not in path and not os.path.exists(path):
            raise FileNotFoundError(f'{name}: {listed}: no such image {path}')
    if count:
        _check_labels(dataset, name, count, hint)


def _check_labels(dataset, name: str, count: int, hint: str) -> None:
    most = 0
    for index in range(len(dataset)):
        try:
            labels = dataset.get_cat_ids(index)
        except (AttributeError, KeyError, NotImplementedError):
            return  # images without labels
        for label in labels:
            if not 0 <= label < count:
                image = dataset.get_data_info(index).get('img_path', f'image {index}')
                raise ValueError(
                    f'{name}: {image} has label {label}, and the head has {count} classes, 0 .. {count - 1}{hint}'
                )
            most = max(most, label)
    if hint and most + 1 < count:
        say(f'{name}: labels 0 .. {most}, and the head has {count} classes{hint}')


def leave_out_last_of_one(loader: DataLoader, model: nn.Module) -> None:
    """Drop a last batch of one image, of which batch normalization has no statistics, and say so.

    Raises:
        ValueError: if that image is all there is.
    """
    batches = loader.batch_sampler
    if type(batches) is not BatchSampler or isinstance(batches.sampler, InfiniteSampler):
        return
    norms = any(isinstance(module, _BatchNorm) for module in model.modules())
    images = len(batches.sampler)
    if not norms or batches.drop_last or batches.batch_size == 1 or images % batches.batch_size != 1:
        return
    if images == 1:
        raise ValueError('train_dataloader: one image in all, and batch normalization needs two')
    batches.drop_last = True
    say(
        f'train_dataloader: of {images} images in batches of {batches.batch_size} the last would be alone, and batch '
        'normalization needs two: it is left out (another one each epoch)'
    )
