"""AutoAugment that fills with the color that it is told."""

from mmpretrain.datasets.transforms import AutoAugment as _AutoAugment
from mmpretrain.datasets.transforms.auto_augment import AUTOAUG_POLICIES, merge_hparams

from ..registry import TRANSFORMS


@TRANSFORMS.register_module()
class AutoAugment(_AutoAugment):
    """mmpretrain's ``AutoAugment`` that heeds ``hparams``: mmpretrain 1.2.0 builds its operations without them.

    Args:
        policies: a name of mmpretrain's (``'imagenet'``), or lists of operations.
        hparams: arguments for the operations that take them. By default what rotating and
            shearing lay bare gets ImageNet's mean color, BGR as images are loaded.
    """

    def __init__(self, policies: str | list[list[dict]], hparams: dict = dict(pad_val=[104, 116, 124])):
        if isinstance(policies, str):
            policies = AUTOAUG_POLICIES[policies]
        super().__init__([[_scoped(merge_hparams(operation, hparams)) for operation in p] for p in policies], hparams)


def _scoped(operation: dict) -> dict:
    """``operation`` with a type that every scope finds, mmsegmentation's as well."""
    name = operation['type']
    return dict(operation, type=f'mmpretrain.{name}') if isinstance(name, str) and '.' not in name else operation
