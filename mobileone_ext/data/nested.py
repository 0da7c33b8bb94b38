"""Data sets inside data sets: joined, repeated, balanced, folded; the one place that walks them."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config


def innermost(dataset: Any) -> Iterator[Any]:
    """Every data set of images inside ``dataset``, in order.

    Args:
        dataset: the config of a data set, or one that is built; those inside are of the same kind, so that
            both can be walked side by side.
    """
    return (inner for inner, _ in _walk(dataset, ''))


def datasets_of(config: Config, *loaders: str) -> Iterator[tuple[dict, str]]:
    """The config of every data set of images of ``loaders``, each with the option that sets it.

    A loader that the config lacks or whose data set is built already has none.

    Args:
        loaders: e.g. ``'train_dataloader'``.
    """
    for name in loaders:
        dataset = (config.get(name) or {}).get('dataset')
        if isinstance(dataset, dict):
            yield from _walk(dataset, f'{name}.dataset')


def _walk(dataset: Any, option: str) -> Iterator[tuple[Any, str]]:
    parts = _part(dataset, 'datasets')
    if parts:
        for number, part in enumerate(parts):
            yield from _walk(part, f'{option}.datasets.{number}')
        return
    inner = _part(dataset, 'dataset') or _part(dataset, '_dataset')  # the latter of mmengine's num_batch_per_epoch
    if inner is None:
        yield dataset, option
    else:
        yield from _walk(inner, f'{option}.dataset')


def _part(dataset: Any, name: str) -> Any:
    value = dataset.get(name) if isinstance(dataset, Mapping) else getattr(dataset, name, None)
    return None if isinstance(value, str) else value  # a name is no data set
