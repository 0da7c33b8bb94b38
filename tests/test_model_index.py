"""model-index.yml: what mim and mmpretrain.list_models() show is there, and is the network that it says."""

import mmpretrain
import pytest
from conftest import ROOT
from mmpretrain.apis import ModelHub

from mobileone_ext.checkpoints.model_card import num_parameters

VARIANTS = ('s0', 's1', 's2', 's3', 's4')


@pytest.fixture(scope='module', autouse=True)
def registered():
    ModelHub.register_model_index(ROOT / 'model-index.yml')


def test_models_are_listed():
    assert mmpretrain.list_models('mobileone_s*_8xb32') == [f'mobileone_{variant}_8xb32' for variant in VARIANTS]


@pytest.mark.parametrize('variant', VARIANTS)
def test_models_are_built(variant):
    name = f'mobileone_{variant}_8xb32'
    model = mmpretrain.get_model(name, backbone=dict(deploy=True))
    assert type(model.backbone).__module__ == 'mobileone_ext.backbone'
    assert num_parameters(model.state_dict()) == ModelHub.get(name).metadata.parameters


def test_no_accuracy_is_shown_without_weights():
    for variant in VARIANTS:
        model = ModelHub.get(f'mobileone_{variant}_8xb32')
        assert model.weights or not model.results
