"""Image transforms, registered under the names that mmcv and mmpretrain give them."""

from typing import List, Optional, Union

from mmcv.transforms import LoadImageFromFile as _LoadImageFromFile
from mmpretrain.datasets.transforms import AutoAugment as _AutoAugment
from mmpretrain.datasets.transforms.auto_augment import AUTOAUG_POLICIES, merge_hparams

from .registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadImageFromFile(_LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` by Pillow, which notices a file that is cut off.

    OpenCV would fill the missing part with grey. An image that is in memory
    already, as in mmpretrain's inferencers, stays as it is.

    Raises (when called):
        ValueError: naming the file that is not a whole image.
        FileNotFoundError: naming the file that is not there.
    """

    def __init__(self, imdecode_backend: str = 'pillow', **kwargs):
        super().__init__(imdecode_backend=imdecode_backend, **kwargs)

    def transform(self, results: dict) -> Optional[dict]:
        if 'img' in results:
            return results
        try:
            return super().transform(results)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f'{results["img_path"]}: not a readable image ({error})') from error


@TRANSFORMS.register_module()
class AutoAugment(_AutoAugment):
    """mmpretrain's ``AutoAugment`` that heeds ``hparams``: mmpretrain 1.2.0 builds its operations without them.

    Args:
        policies: a name of mmpretrain's (``'imagenet'``), or lists of operations.
        hparams: arguments for the operations that take them. By default what rotating and
            shearing lay bare gets ImageNet's mean colour, BGR as images are loaded.
    """

    def __init__(self, policies: Union[str, List[List[dict]]], hparams: dict = dict(pad_val=[104, 116, 124])):
        if isinstance(policies, str):
            policies = AUTOAUG_POLICIES[policies]
        super().__init__([[merge_hparams(operation, hparams) for operation in policy] for policy in policies], hparams)
