"""MobileOne (arXiv 2206.04040) for mmpretrain: train, study, fuse and deploy.

Nothing heavy is imported here: ``import mobileone_ext.reparam`` needs torch
alone. Configs load the registered parts by ``custom_imports``. ``__all__`` is the
front door (docs/python.md); what it lists is imported when it is first asked for.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .deploy.anywhere import Report, fuse
    from .deploy.classifier import open_classifier
    from .deploy.compare_files import compare_files as compare
    from .deploy.export import export
    from .deploy.predict import predict
    from .deploy.quantization.inside import prepare
    from .deploy.quantization.quantize import quantize
    from .engine.finetune import finetune
    from .metadata import Metadata
    from .models import create_model

__version__ = '0.2.0'
__all__ = [
    'Metadata', 'Report', 'compare', 'create_model', 'export', 'finetune', 'fuse', 'open_classifier', 'predict',
    'prepare', 'quantize',
]  # fmt: skip
_PLACES = dict(
    Metadata='metadata:Metadata',
    Report='deploy.anywhere:Report',
    compare='deploy.compare_files:compare_files',
    create_model='models:create_model',
    export='deploy.export:export',
    finetune='engine.finetune:finetune',
    fuse='deploy.anywhere:fuse',
    open_classifier='deploy.classifier:open_classifier',
    predict='deploy.predict:predict',
    prepare='deploy.quantization.inside:prepare',
    quantize='deploy.quantization.quantize:quantize',
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    """PEP 562: what the module does not hold itself."""
    if name not in _PLACES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module, _, attribute = _PLACES[name].partition(':')
    with warnings.catch_warnings():  # of mmcv's compiled operators, which nothing here needs
        warnings.filterwarnings('ignore', message='Fail to import')
        return getattr(import_module(f'.{module}', __name__), attribute)
