"""Apple's published S0 on 1300 validation photos, in every layout: each code base's own network, the same answers."""

import pytest
import timm
import torch
from networks import classifier
from PIL import Image
from timm.data import create_transform
from timm.utils import reparameterize_model
from torchvision import transforms

from mobileone_ext.checkpoints.convert import convert
from mobileone_ext.checkpoints.load import load_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def own_network(path):
    model = classifier('s0', deploy=True)
    load_weights(path).load_into(model)
    return model


def mmpretrain_network(path):
    model = classifier('s0', kind='mmpretrain.MobileOne', deploy=True)
    model.load_state_dict(torch.load(path, weights_only=True)['state_dict'], strict=True)
    return model


def timm_network(path):
    model = reparameterize_model(timm.create_model('mobileone_s0').eval())
    model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    return model


@torch.no_grad()
def predictions(model, files, prepare):
    """Predicted classes (N,)."""
    model = model.eval().to(memory_format=torch.channels_last)
    batches = (files[start : start + 50] for start in range(0, len(files), 50))
    stacked = (torch.stack([prepare(Image.open(file).convert('RGB')) for file in batch]) for batch in batches)
    return torch.cat([model(batch.contiguous(memory_format=torch.channels_last)).argmax(1) for batch in stacked])


@pytest.mark.slow
def test_top1_in_every_layout(tmp_path, shared):
    root = shared('data', 'ilsvrc_val_1300')
    source = shared('weights', 'apple_mobileone_s0_fused.pth')
    lines = [line.split() for line in (root / 'meta' / 'val.txt').read_text().splitlines()]
    files, labels = [root / 'val' / name for name, _ in lines], torch.tensor([int(label) for _, label in lines])
    own = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    theirs = create_transform(224, interpolation='bilinear', crop_pct=224 / 256, mean=MEAN, std=STD)
    actual = {}
    for layout, network, prepare in (
        ('apple', own_network, own),
        ('mmpretrain', mmpretrain_network, own),
        ('timm', timm_network, theirs),
    ):
        path = tmp_path / f'{layout}.pth'
        convert(source, path, layout)
        actual[layout] = predictions(network(path), files, prepare)
        top1 = 100 * float((actual[layout] == labels).double().mean())
        print(f'{layout}: top-1 {top1:.2f} on {len(files)} images')
        assert round(top1, 2) == 80.77
    assert all(torch.equal(classes, actual['apple']) for classes in actual.values())
