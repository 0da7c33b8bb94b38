"""Compiled training."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from ..registry import HOOKS


@HOOKS.register_module()
class CompileHook(Hook):
    """``torch.compile`` the backbone in place, for training and validation; its keys stay.

    mmengine's ``compile=True`` compiles the whole step with the optimizer, which
    torch 2.14 fails to do on this optimizer's groups.
    """

    def before_train(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.backbone.compile()
