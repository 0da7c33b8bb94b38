"""Every rank ends an epoch with the same batch norm statistics, also in its EMA copy."""

from mmengine.dist import all_reduce_params, get_world_size
from mmengine.hooks import EMAHook, Hook

from ..registry import HOOKS


@HOOKS.register_module()
class SyncStatisticsHook(Hook):
    """Average floating-point buffers over the ranks after each training epoch.

    Without it each rank validates its own running statistics, and only those of
    rank 0 are saved. mmengine's SyncBuffersHook leaves the EMA copy apart.
    """

    priority = 'NORMAL'

    def after_train_epoch(self, runner) -> None:
        if get_world_size() == 1:
            return
        modules = [runner.model, *(hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook))]
        buffers = [b for module in modules for b in module.buffers() if b.is_floating_point()]
        all_reduce_params(buffers, op='mean')
