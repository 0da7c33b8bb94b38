"""Compiled training."""

from mmengine.hooks import Hook

from ..registry import HOOKS
from .run import unwrap


@HOOKS.register_module()
class CompileHook(Hook):
    """``torch.compile`` the backbone in place, for training and validation; its keys stay.

    mmengine's ``compile=True`` compiles the whole step with the optimizer, which
    torch 2.14 fails to do on this optimizer's groups.
    """

    def before_train(self, runner) -> None:
        model = unwrap(runner.model)
        model.backbone.compile()
