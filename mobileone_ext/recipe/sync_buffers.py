"""Every rank ends an epoch with the same batch norm statistics, also in its EMA copy."""

from mmengine.dist import all_reduce_params, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop

from ..registry import HOOKS
from .run import averages


@HOOKS.register_module()
class SyncStatisticsHook(Hook):
    """Average floating-point buffers over the ranks after each training epoch.

    Where a loop goes by iterations, before it validates and before a checkpoint is written.
    Without it each rank validates its own running statistics, and only those of
    rank 0 are saved. mmengine's SyncBuffersHook leaves the EMA copy apart.
    """

    priority = 'NORMAL'

    def after_train_epoch(self, runner) -> None:
        self._average(runner)

    def before_val_epoch(self, runner) -> None:
        self.within_epoch(runner)

    def within_epoch(self, runner) -> None:
        """Average in the one long epoch of a loop that goes by iterations."""
        if isinstance(runner._train_loop, IterBasedTrainLoop):
            self._average(runner)

    @staticmethod
    def _average(runner) -> None:
        if get_world_size() == 1:
            return
        modules = [runner.model, *averages(runner)]
        buffers = [b for module in modules for b in module.buffers() if b.is_floating_point()]
        all_reduce_params(buffers, op='mean')
