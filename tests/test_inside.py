"""The code of docs/inside.md and docs/python.md as it stands there, and what it leaves behind."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT, randomize_norms
from networks import random_state
from printed import blocks
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mobileone_ext as m1
from mobileone_ext.deploy import anywhere
from mobileone_ext.deploy.anywhere import relative_difference
from mobileone_ext.deploy.runtime import open_network
from mobileone_ext.metadata import IMAGENET_MEAN, IMAGENET_STD


@pytest.fixture
def run(story, monkeypatch):
    """``run('inside', 'torchvision')`` runs the blocks under that heading; what each has left in its names.

    With them a copy of each network that they fuse.
    """
    copies = []

    def fuse(model, images=None):
        copies.append(copy.deepcopy(model).eval())
        return anywhere.fuse(model, images)

    monkeypatch.setattr(m1, 'fuse', fuse, raising=False)
    return lambda page, heading: (story(f'docs/{page}.md', heading), copies)


@pytest.mark.parametrize('page', ['inside', 'python'])
def test_every_section_runs_here(page):
    tested = re.findall(rf"run\('{page}', (['\"])(.+?)\1\)", Path(__file__).read_text())
    headings = {block.heading for block in blocks(f'docs/{page}.md') if block.runs}
    assert {heading for heading in headings if heading.startswith(tuple(name for _, name in tested))} == headings


def onnx_outputs(path, images):
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return torch.from_numpy(np.asarray(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]))


def agree(expected, found, tolerance=1e-4):
    with torch.no_grad():
        assert relative_difference(expected, found) < tolerance


@pytest.mark.slow
def test_the_page_on_python(run, capsys):
    (names, finetuned), (before, *_) = run('python', 'MobileOne from Python')
    printed = capsys.readouterr().out
    assert '43 fused: ' in printed and names['logits'].shape == (2, 10) and printed.count('kind ') == 17
    pixels = torch.randint(256, (2, 3, 96, 96)).float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    agree(before((pixels - mean) / std), onnx_outputs('s0.onnx', pixels))
    assert names['report']['num_images'] == 16 and names['report']['max_abs_diff'] > 0
    assert finetuned['report']['num_images'] == 4 and '% of 4 photos' in printed
    assert Path('work_dirs/flowers/fused.pth').is_file()


@pytest.mark.slow
def test_any_network_on_the_page_on_python(run):
    run('python', 'Fuse any network')
    assert Path('fused.pth').is_file()


@pytest.mark.slow
@pytest.mark.parametrize('number', [0, 1])
def test_a_type_checker_passes_over_the_page_on_python(number, tmp_path):
    code = [block.text for block in blocks('docs/python.md') if block.language == 'python']
    (tmp_path / 'page.py').write_text(code[number])
    mypy = [sys.executable, '-m', 'mypy', '--follow-imports=silent', '--ignore-missing-imports', tmp_path / 'page.py']
    done = subprocess.run(mypy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.apps
def test_unet_of_segmentation_models(run):
    smp = pytest.importorskip('segmentation_models_pytorch', reason='segmentation_models_pytorch is not installed')
    (_, names), (before,) = run('inside', 'segmentation_models')
    assert len(names['report'].fused) == 43 and not any(
        isinstance(m, _BatchNorm) for m in names['unet'].encoder.modules()
    )
    agree(before(names['images']), onnx_outputs('unet.onnx', names['images']))
    reference = smp.encoders.mobileone.reparameterize_model(before)
    assert names['unet'].state_dict().keys() == reference.state_dict().keys()
    agree(reference(names['images']), names['unet'](names['images']))


@pytest.mark.apps
def test_unet_in_litert(tmp_path):
    smp = pytest.importorskip('segmentation_models_pytorch', reason='segmentation_models_pytorch is not installed')
    pytest.importorskip('litert_torch', reason='litert_torch is not installed')
    assert "m1.export(unet, 'unet.tflite', image_size=(64, 96))" in (ROOT / 'docs' / 'inside.md').read_text()
    unet = randomize_norms(smp.Unet('mobileone_s0', encoder_weights=None, classes=2)).eval()
    m1.fuse(unet)
    m1.export(unet, tmp_path / 'unet.tflite', image_size=(64, 96))
    images = torch.randn(2, 3, 64, 96)
    found = open_network(tmp_path / 'unet.tflite')(images.numpy())
    with torch.no_grad():
        agree(unet(images).flatten(1), torch.from_numpy(found))


@pytest.mark.apps
def test_the_encoder_of_segmentation_models_computes_our_maps(run_tool, tmp_path):
    smp = pytest.importorskip('segmentation_models_pytorch', reason='segmentation_models_pytorch is not installed')
    torch.save(dict(state_dict=random_state('s0', 'branched'), meta={}), tmp_path / 's0.pth')
    assert run_tool('convert_checkpoint', tmp_path / 's0.pth', tmp_path / 'apple.pth', '--to', 'apple')[0] == 0
    encoder = smp.encoders.get_encoder('mobileone_s0', weights=None).eval()
    encoder.load_state_dict(torch.load(tmp_path / 'apple.pth', weights_only=True))
    ours = m1.create_model('mobileone_s0', tmp_path / 's0.pth', features_only=True).eval()
    images = torch.randn(2, 3, 64, 96)
    for found, expected in zip(encoder(images)[1:], ours(images), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.apps
def test_faster_rcnn_of_torchvision(run):
    (names,), (before,) = run('inside', 'torchvision')
    detector = names['detector']
    assert len(names['report'].fused) == 43
    assert all(p.grad is not None for p in detector.rpn.parameters())
    images = torch.randn(1, 3, 96, 128)
    agree(before(images), detector.backbone(images))
    fused = copy.deepcopy(detector)
    fused.backbone = before
    agree(fused([names['image']])[0]['boxes'], names['boxes'], 1e-3)


@pytest.mark.apps
def test_fastvit_of_timm(run):
    (names,), (before,) = run('inside', 'timm')
    images = torch.randn(1, 3, 128, 128)
    reference = reparameterize_model(before)
    assert names['fastvit'].state_dict().keys() == reference.state_dict().keys()
    assert any(kind.startswith("timm's MobileOne") for kind in names['report'].fused.values())
    assert any(kind == 'its own reparameterize()' for kind in names['report'].fused.values())
    agree(before(images), names['fastvit'](images))


@pytest.mark.apps
def test_an_embedding_with_its_norm_inside(run):
    (names,), (before,) = run('inside', 'An embedding')
    images = names['images']
    found = onnx_outputs('embedding.onnx', images)
    agree(before(images), found)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    assert isinstance(before.network.head.fc, nn.Identity)


@pytest.mark.apps
def test_two_heads_and_maps(run):
    (names,), (before,) = run('inside', 'Two heads')
    images = names['images']
    with torch.no_grad():
        expected, maps = before(images), before.encoder(images)
    session = onnxruntime.InferenceSession('gaze.onnx', providers=['CPUExecutionProvider'])
    for name, tensor in zip(
        ('eyes', 'angles'), session.run(['eyes', 'angles'], {'image': images.numpy()}), strict=True
    ):
        agree(expected[name], torch.from_numpy(tensor))
    agree(torch.cat([each.flatten(1) for each in maps], 1), torch.from_numpy(open_network('maps.onnx')(images.numpy())))


@pytest.mark.apps
def test_equalized_for_another_quantizer(run):
    (names,), (before,) = run('inside', "For another toolchain's quantizer")
    report = names['report']
    # 43 convolutions, of whose maps two leave the encoder.
    assert len(report['pairs']) == 41 and report['difference'] < 1e-5
    agree(before(names['photos']), onnx_outputs('prepared.onnx', names['photos']))
    agree(before.encoder(names['photos']), names['segmentor'].encoder(names['photos']))


@pytest.mark.apps
def test_the_encoder_of_a_unet_is_equalized_but_for_its_skip_connections():
    smp = pytest.importorskip('segmentation_models_pytorch', reason='segmentation_models_pytorch is not installed')
    torch.manual_seed(0)
    unet = randomize_norms(smp.Unet('mobileone_s0', encoder_weights=None, classes=2)).eval()
    images = torch.randn(2, 3, 64, 96)
    m1.fuse(unet, images)
    before = copy.deepcopy(unet)
    pairs = m1.prepare(unet, images)['pairs']
    # 43 convolutions, of which five make a map that the decoder reads; the decoder has its norms still.
    assert len(pairs) == 38 and all(name.startswith('encoder.') for pair in pairs for name in pair)
    assert not torch.equal(unet.encoder.stage3[3].reparam_conv.weight, before.encoder.stage3[3].reparam_conv.weight)
    agree(before(images), unet(images))
    agree(before.encoder(images), unet.encoder(images))


@pytest.mark.apps
def test_mmsegmentation(run):
    pytest.importorskip('mmseg', reason='needs onedl-mmsegmentation: make test REQUIREMENTS=requirements-onedl.txt')
    (names,), (before,) = run('inside', 'mmsegmentation')
    assert len(names['report'].fused) == 43
    agree(before(names['images']), onnx_outputs('segmentor.onnx', names['images']))


@pytest.mark.apps
def test_lightning(run):
    pytest.importorskip('lightning', reason='lightning is not installed')
    (names,), (before,) = run('inside', 'Lightning')
    assert len(names['report'].fused) == 43
    agree(before(names['images']), onnx_outputs('classifier.onnx', names['images']))
