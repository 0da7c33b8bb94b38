"""Image transforms, registered under the names that mmcv gives them."""

from typing import Optional

from mmcv.transforms import LoadImageFromFile as _LoadImageFromFile

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
