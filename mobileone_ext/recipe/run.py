"""What hooks ask of a run: its network, moving averages of its weights, the workers of a loader."""

from typing import Any

from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmpretrain.registry import HOOKS
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """What ``DistributedDataParallel`` and its like hold; any other model itself."""
    return model.module if is_model_wrapper(model) else model


def keeps_average(hook: dict | None) -> bool:
    """Whether the config ``hook`` is of an ``EMAHook``: mmengine's, mmpretrain's or one made of these."""
    kind = (hook or {}).get('type')
    kind = HOOKS.get(kind) if isinstance(kind, str) else kind
    return isinstance(kind, type) and issubclass(kind, EMAHook)


def averages(runner) -> list[nn.Module]:
    """The averaged networks of a run whose hooks have begun."""
    return [hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook)]


def end_workers(loader: Any) -> None:
    """End the workers that a ``DataLoader`` keeps, if it does; the next pass starts new ones.

    Garbage collection would wait 5 s for each (torch 2.14): it closes the queues first through which they hear of it.
    """
    iterator = getattr(loader, '_iterator', None)
    if iterator is not None:
        if hasattr(iterator, '_shutdown_workers'):
            iterator._shutdown_workers()
        loader._iterator = None
