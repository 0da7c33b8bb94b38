"""mmpretrain's own interfaces on our configs and checkpoints."""

import torch
from conftest import TINY
from mmpretrain.apis import ImageClassificationInferencer, get_model

from mobileone_ext.backbone import MobileOne
from mobileone_ext.checkpoints.load import load_weights


def test_get_model_builds_from_a_config_path(tiny_run):
    checkpoint = tiny_run / 'epoch_4.pth'
    model = get_model(TINY, pretrained=str(checkpoint))
    assert isinstance(model.backbone, MobileOne) and not model.training
    expected = load_weights(str(checkpoint)).state
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_inferencer_classifies_a_photo(tiny_run, digits):
    image = str(sorted(digits.glob('val/3/*.png'))[0])
    inferencer = ImageClassificationInferencer(TINY, pretrained=str(tiny_run / 'epoch_4.pth'))
    (result,) = inferencer(image)
    assert result['pred_class'] in list('0123456789') and abs(sum(result['pred_scores']) - 1) < 1e-4
