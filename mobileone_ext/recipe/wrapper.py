"""The model behind a wrapper for several processes."""

from mmengine.model import is_model_wrapper
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """What ``DistributedDataParallel`` and its like hold; any other model itself."""
    return model.module if is_model_wrapper(model) else model
