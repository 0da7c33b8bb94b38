"""Registries of this package, scope ``mobileone_ext``: children of mmengine's, found from every scope of OpenMMLab.

A registry imports the modules of its parts when it is first asked, so a name of ours is ours,
whatever else has been imported and whoever has a part of the same name.
"""

from mmengine import Registry
from mmengine import registry as mmengine

SCOPE = 'mobileone_ext'

DATASETS = Registry(
    'dataset',
    parent=mmengine.DATASETS,
    scope=SCOPE,
    locations=['mobileone_ext.data.dataset', 'mobileone_ext.data.shards'],
)
HOOKS = Registry('hook', parent=mmengine.HOOKS, scope=SCOPE, locations=['mobileone_ext.recipe'])
MODELS = Registry(
    'model',
    parent=mmengine.MODELS,
    scope=SCOPE,
    locations=['mobileone_ext.backbone', 'mobileone_ext.data.flip', 'mobileone_ext.distillation'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=mmengine.OPTIM_WRAPPER_CONSTRUCTORS,
    scope=SCOPE,
    locations=['mobileone_ext.recipe'],
)
WEIGHT_INITIALIZERS = Registry(
    'weight initializer', parent=mmengine.WEIGHT_INITIALIZERS, scope=SCOPE, locations=['mobileone_ext.recipe']
)
TRANSFORMS = Registry(
    'transform',
    parent=mmengine.TRANSFORMS,
    scope=SCOPE,
    locations=['mobileone_ext.data.transforms', 'mobileone_ext.data.autoaugment', 'mobileone_ext.data.flip'],
)
