"""Whose part a name is: asked in fresh interpreters, where nothing of ours has been imported yet."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

# A registry, a name that mmpretrain or mmcv has as well (but the last two), and the module that ours comes from.
PARTS = [
    ('MODELS', 'MobileOne', 'mobileone_ext.backbone'),
    ('TRANSFORMS', 'AutoAugment', 'mobileone_ext.data.autoaugment'),
    ('TRANSFORMS', 'LoadImageFromFile', 'mobileone_ext.data.transforms'),
    ('TRANSFORMS', 'RandomResizedCrop', 'mobileone_ext.data.transforms'),
    ('TRANSFORMS', 'ResizeEdge', 'mobileone_ext.data.transforms'),
    ('MODELS', 'DistilledClassifier', 'mobileone_ext.distillation'),
    ('HOOKS', 'CurriculumHook', 'mobileone_ext.recipe.curriculum'),
    ('OPTIM_WRAPPER_CONSTRUCTORS', 'GroupedOptimWrapperConstructor', 'mobileone_ext.recipe.param_groups'),
]
ASK = """
import sys, warnings
warnings.filterwarnings('ignore')
{setup}
parts = {parts}
asked = [getattr(registries, registry).get('mobileone_ext.' + name) for registry, name, _ in parts]
for (registry, name, _), part in zip(parts, asked):  # importing may print a line, too
    print(registry, name, part and part.__module__)
"""
# Who asks: which imports came before, and which registries are asked.
ASKERS = {
    'ours': 'import mobileone_ext.registry as registries',
    "ours, after mmpretrain's parts": (
        'import mmpretrain.models, mmpretrain.datasets, mmpretrain.engine, mobileone_ext.registry as registries'
    ),
    "mmpretrain's": 'import mmpretrain.models, mmpretrain.datasets, mmpretrain.registry as registries',
    "mmengine's": 'import mmengine.registry as registries',
    'a child in a scope of its own': """
from mmengine import registry as roots, Registry, init_default_scope
import types
names = {'MODELS', 'TRANSFORMS', 'HOOKS', 'OPTIM_WRAPPER_CONSTRUCTORS'}
registries = types.SimpleNamespace(
    **{name: Registry('child', parent=getattr(roots, name), scope='stranger') for name in names})
init_default_scope('stranger')
net = registries.MODELS.build(dict(type='mobileone_ext.MobileOne', arch='s4', out_indices=(0, 1, 2, 3)))
augment = registries.TRANSFORMS.build(dict(type='mobileone_ext.AutoAugment', policies='imagenet'))
assert type(net).__module__ == 'mobileone_ext.backbone'
assert type(augment).__module__ == 'mobileone_ext.data.autoaugment'
try:
    registries.MODELS.build(dict(type='mobileone_ext.ResNet', depth=50))
except (KeyError, RuntimeError) as error:
    pass
else:
    raise AssertionError('a part of mmpretrain by our name')
""",
}


def ask(code):
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    'asker', [pytest.param(name, marks=[pytest.mark.slow] if name.startswith('ours') else ()) for name in ASKERS]
)
def test_a_name_of_ours_is_ours(asker):
    lines = ask(ASK.format(setup=ASKERS[asker], parts=PARTS)).splitlines()
    assert lines[-len(PARTS) :] == [' '.join(part) for part in PARTS]
