"""Registries of this package: children of mmpretrain's, scope ``mobileone_ext``."""

from mmengine import Registry
from mmpretrain import registry as mmpretrain

SCOPE = 'mobileone_ext'

MODELS = Registry('model', parent=mmpretrain.MODELS, scope=SCOPE, locations=['mobileone_ext.backbone'])
HOOKS = Registry('hook', parent=mmpretrain.HOOKS, scope=SCOPE, locations=['mobileone_ext.recipe'])
TRANSFORMS = Registry('transform', parent=mmpretrain.TRANSFORMS, scope=SCOPE, locations=['mobileone_ext.transforms'])
