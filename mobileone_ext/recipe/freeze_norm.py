"""A last phase of training with frozen batch norm statistics."""

from mmengine.hooks import Hook

from ..registry import HOOKS
from .run import unwrap


@HOOKS.register_module()
class FreezeNormHook(Hook):
    """Keep the backbone's batch norm in eval mode from ``epoch`` on, by its ``norm_eval``.

    Args:
        epoch: counted from 0; a float is a fraction of ``max_epochs``.
    """

    def __init__(self, epoch: int | float):
        if epoch < 0 or (isinstance(epoch, float) and epoch >= 1):
            raise ValueError(f'FreezeNormHook: epoch={epoch!r} must be 0 or more, or a fraction (float) below 1')
        self.epoch = epoch

    def before_train_epoch(self, runner) -> None:
        begin = round(self.epoch * runner.max_epochs) if isinstance(self.epoch, float) else self.epoch
        model = unwrap(runner.model)
        model.backbone.norm_eval = model.backbone.norm_eval or runner.epoch >= begin
