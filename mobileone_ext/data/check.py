"""Is the data where the config says? Asked before a run starts, answered in one line."""

import os
from collections.abc import Iterator
from pathlib import Path

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')


def check_data(config, *loaders: str) -> None:
    """Check the folders of ``loaders`` (``'train_dataloader'``, ...) of an mmengine config.

    Raises:
        ValueError: naming what is missing, the layout that is expected, and the
            option that names another place.
    """
    num_classes = config.model.get('head', {}).get('num_classes')
    for name in loaders:
        if config.get(name):
            _check_dataset(config[name]['dataset'], f'{name}.dataset', num_classes)


def _check_dataset(dataset: dict, option: str, num_classes: int) -> None:
    if 'dataset' in dataset:
        return _check_dataset(dataset['dataset'], f'{option}.dataset', num_classes)
    root, split = dataset.get('data_root'), dataset.get('split', '')
    prefix = dataset.get('data_prefix', '') or split
    if root is None or not isinstance(prefix, str):
        return None  # a data set of another kind speaks for itself
    folder = Path(root, prefix)
    annotations = dataset.get('ann_file', '')
    if not annotations and split and Path(root, 'meta', f'{split}.txt').exists():
        annotations = f'meta/{split}.txt'
    remedy = (
        f'expected are class folders {folder}/CLASS/*.JPEG, or images in {folder} listed in an annotation file; '
        f'--cfg-options {option}.data_root=DIR (and {option}.ann_file=FILE) names another place'
    )
    for path in (Path(root), folder, Path(root, annotations)):
        if not path.exists():
            raise ValueError(f'{path}: no such data; {remedy}')
    if next(_images(folder), None) is None:
        raise ValueError(f'{folder}: holds no images; {remedy}')
    if not annotations:
        classes = sum(entry.is_dir() for entry in os.scandir(folder))
        if num_classes and classes != num_classes:
            raise ValueError(
                f'{folder}: has {classes} class folders, the head has {num_classes} classes; '
                f'--cfg-options model.head.num_classes={classes}, or {option}.data_root=DIR'
            )
    return None


def _images(folder: Path) -> Iterator[str]:
    for _, _, files in os.walk(folder):
        yield from (file for file in files if file.lower().endswith(IMAGE_SUFFIXES))
