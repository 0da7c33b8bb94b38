"""Compiled training."""

from mmengine.hooks import Hook

from ..registry import HOOKS
from .run import unwrap


@HOOKS.register_module()
class CompileHook(Hook):
    """``torch.compile`` the backbone in place, for training and validation; its keys stay.

    mmengine's ``compile=True`` compiles the whole step with the optimizer, which
    torch 2.14 fails to do on this optimizer's groups.

    Args:
        options: of ``torch.compile``. With ``mode='reduce-overhead'`` a GPU replays forward and backward as CUDA
            graphs, one for each image size: the host calls a few of these instead of every operator.
    """

    def __init__(self, **options):
        self.options = options

    def before_train(self, runner) -> None:
        model = unwrap(runner.model)
        model.backbone.compile(**self.options)
