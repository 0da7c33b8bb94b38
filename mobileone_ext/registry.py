"""Registries of this package: children of mmpretrain's, scope ``mobileone_ext``."""

from mmengine import Registry
from mmpretrain import registry as mmpretrain

SCOPE = 'mobileone_ext'

HOOKS = Registry('hook', parent=mmpretrain.HOOKS, scope=SCOPE)
MODELS = Registry('model', parent=mmpretrain.MODELS, scope=SCOPE)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor', parent=mmpretrain.OPTIM_WRAPPER_CONSTRUCTORS, scope=SCOPE
)
TRANSFORMS = Registry('transform', parent=mmpretrain.TRANSFORMS, scope=SCOPE)
