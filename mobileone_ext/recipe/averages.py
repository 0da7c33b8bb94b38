"""Moving averages of a run's weights, and the hooks that keep them."""

from mmengine.hooks import EMAHook
from mmpretrain.registry import HOOKS
from torch import nn


def keeps_average(hook: dict | None) -> bool:
    """Whether the config ``hook`` is of an ``EMAHook``: mmengine's, mmpretrain's or one made of these."""
    kind = (hook or {}).get('type')
    kind = HOOKS.get(kind) if isinstance(kind, str) else kind
    return isinstance(kind, type) and issubclass(kind, EMAHook)


def averages(runner) -> list[nn.Module]:
    """The averaged networks of a run whose hooks have begun."""
    return [hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook)]
