"""A hub's folder: timm and transformers open it and give what the network gives; what they cannot take is a line."""

import json
import math
from types import SimpleNamespace

import pytest
import safetensors.torch
import timm
import torch
import yaml
from conftest import only_line
from networks import classifier, random_state
from PIL import Image
from safetensors import safe_open

from mobileone_ext import cli
from mobileone_ext.checkpoints.load import load_weights
from mobileone_ext.checkpoints.names import LICENSES, PUBLISHED, license_of
from mobileone_ext.data.pixels import Preprocessing
from mobileone_ext.deploy import fuse, hub
from mobileone_ext.metadata import Metadata

pytestmark = pytest.mark.filterwarnings('ignore')

NAMES = ('say "cheese"', "it's <script>alert(1)</script>", 'a\\b', 'Käse | сыр', '奶酪 {x}')
SIZE = 64


def config_of(variant='s0', names=NAMES, steps=None, **model):
    """That of a run: this many classes, images of 64 of 80 pixels, by bicubic."""
    resizing = [
        dict(type='ResizeEdge', scale=80, edge='short', backend='pillow', interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=SIZE),
    ]
    config = cli.load_config(f'configs/mobileone_{variant}_8xb32.py', {'model.head.num_classes': str(len(names))})
    pipeline = config.test_dataloader.dataset.pipeline
    config.test_dataloader.dataset.pipeline = [pipeline[0], *(steps or resizing), pipeline[-1]]
    config.model.update(model)
    return config


def checkpoint(path, config, variant='s0', names=NAMES, form='branched'):
    """A checkpoint as a run leaves it, of random weights."""
    state = dict(random_state(variant, form))
    for key in ('head.fc.weight', 'head.fc.bias'):
        state[key] = state[key][: len(names)]
    torch.save(dict(meta=dict(config=config.pretty_text, dataset_meta=dict(classes=names)), state_dict=state), path)
    return str(path)


def expected(config, source, photo):
    """Logits of a photo by our own network and test pipeline."""
    preprocessing = Preprocessing(config)
    ((_, pixels),) = preprocessing.read([photo], [])
    with torch.no_grad():
        return fuse.load_model(config, load_weights(source))(preprocessing.normalize(pixels[None]))


@pytest.fixture
def photo(tmp_path):
    Image.effect_noise((150, 111), 80).convert('RGB').transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'photo.png')
    return tmp_path / 'photo.png'


def squashed(side):
    return [dict(type='Resize', scale=(side, side), backend='pillow')]


@pytest.mark.parametrize('steps', [None, squashed(48), [dict(type='mobileone_ext.ResizePad', scale=48)]])
def test_timm_gives_the_same(steps, tmp_path, photo, run_tool):
    config = config_of(steps=steps)
    source = checkpoint(tmp_path / 'net.pth', config)
    code, text = run_tool('convert_checkpoint', source, tmp_path / 'hub', '--to', 'hub')
    assert code == 0, text
    model = timm.create_model(f'local-dir:{tmp_path / "hub"}', pretrained=True).eval()
    settings = timm.data.resolve_model_data_config(model)
    images = timm.data.create_transform(**settings, is_training=False)(Image.open(photo))[None]
    assert images.shape[-1] == (48 if steps else SIZE)
    logits = expected(config, source, photo)
    with torch.no_grad():
        torch.testing.assert_close(model(images), logits, rtol=1e-4, atol=1e-5 * float(logits.abs().max()))
    assert tuple(model.pretrained_cfg['label_names']) == NAMES
    assert 'temperature' not in model.pretrained_cfg
    with safe_open(tmp_path / 'hub' / 'model.safetensors', 'pt') as file:
        assert set(file.keys()) == set(model.state_dict())


def test_temperature_and_threshold_are_in_the_folder(tmp_path, run_tool):
    source = checkpoint(tmp_path / 'net.pth', config_of())
    fuse.add_to_meta(source, temperature=1.5, threshold=0.75)
    code, text = run_tool('convert_checkpoint', source, tmp_path / 'hub', '--to', 'hub')
    assert code == 0, text
    written = json.loads((tmp_path / 'hub' / 'config.json').read_text())
    assert (written['temperature'], written['threshold']) == (1.5, 0.75)
    timm.create_model(f'local-dir:{tmp_path / "hub"}', pretrained=True)
    assert 'divided by `temperature` of config.json' in (tmp_path / 'hub' / 'README.md').read_text()


def test_a_folder_is_replaced_and_nothing_else_is(tmp_path, run_tool):
    source = checkpoint(tmp_path / 'net.pth', config_of())
    for _ in range(2):
        code, text = run_tool('convert_checkpoint', source, tmp_path / 'hub', '--to', 'hub')
        assert code == 0, text
    written = {path.name for path in (tmp_path / 'hub').iterdir()}
    assert written == {'README.md', 'config.json', 'model.safetensors'}
    (tmp_path / 'hub' / 'mine.txt').touch()
    code, text = run_tool('convert_checkpoint', source, tmp_path / 'hub', '--to', 'hub')
    assert code == 1 and 'is no hub folder' in only_line(text)
    code, text = run_tool('convert_checkpoint', source, source, '--to', 'hub')
    assert code == 1 and 'is no hub folder' in only_line(text)
    assert load_weights(source).classes == NAMES


def test_the_card_is_read_as_it_is_meant(tmp_path, run_tool, monkeypatch):
    """Its head is YAML with the license's tags; names of classes and figures stand below as they are written."""
    name, config = 'apple/mobileone_s0', config_of()
    source = checkpoint(tmp_path / 'net.pth', config)
    said = hub.describe(Preprocessing(config), NAMES, source)
    text = hub.card('a *folder*', said, license_of(name), {'right of 7 photos': 71.25}, '# table')
    _, head, body = text.split('---\n', 2)
    tags = yaml.safe_load(head)
    assert tags['tags'] == ['image-classification', 'timm', 'transformers'] and tags['library_name'] == 'timm'
    assert (tags['license'], tags['license_name']) == ('other', 'mobileone-license')
    assert r'# a \*folder\*' in body and '| right of 7 photos | 71.25 |' in body
    assert r'\<script\>alert(1)\</script\>' in body and '奶酪' in body and r'Käse \| сыр' in body
    assert yaml.safe_load(hub.card('x', said, license_of('mine.pth'), {}, '').split('---')[1]).get('license') is None


def test_every_published_weight_has_a_license_that_is_told(run_tool):
    assert {entry.license for entry in PUBLISHED.values()} == set(LICENSES)
    assert license_of('timm/mobileone_s1.apple_in1k') == license_of('apple/mobileone_s1') == LICENSES["Apple's own"]
    assert license_of('mmpretrain/mobileone-s4_8xb32_in1k').tags == 'license: apache-2.0\n'
    assert 'mine.pth' in license_of('/some/mine.pth').text
    code, text = run_tool('convert_checkpoint', '--list')
    assert code == 0 and all(license.text in text for license in LICENSES.values())


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(form='fused'), 'not MobileOne-s0, fused, 5 classes; --branched --images DIR gives it branches'),
        (dict(backbone=dict(act_cfg=dict(type='SiLU'))), "its config's network is more than timm's"),
        (dict(steps=[dict(type='ResizeEdge', scale=80), dict(type='CenterCrop', crop_size=64)]), 'by Pillow'),
        (dict(steps=[*squashed(80), dict(type='CenterCrop', crop_size=64)]), 'the test pipeline does otherwise'),
        (dict(data_preprocessor=dict(to_rgb=False)), 'RGB photos'),
    ],
)
def test_what_timm_does_not_take_is_a_line(changes, message, tmp_path, run_tool):
    options = {key: value for key, value in changes.items() if key != 'form'}
    source = checkpoint(tmp_path / 'net.pth', config_of(**options), form=changes.get('form', 'branched'))
    code, text = run_tool('convert_checkpoint', source, tmp_path / 'hub', '--to', 'hub')
    assert code == 1 and message in only_line(text) and str(source) in only_line(text)
    assert not (tmp_path / 'hub').exists()


def test_widths_and_branches_of_ones_own_are_a_line(tmp_path):
    arch = dict(num_blocks=[1, 1, 1, 1], width_factor=[0.25] * 4, num_conv_branches=[1] * 4, num_se_blocks=[0] * 4)
    for options, message in (
        (dict(arch=arch), 'with branches, not MobileOne of widths'),
        (dict(arch='s0', num_conv_branches=2), "timm's MobileOne-S0 differs: .* missing"),
        (dict(arch='s1', use_scale=False), "timm's MobileOne-S1 differs: .* missing"),
    ):
        torch.save(classifier(**options, num_classes=5).state_dict(), tmp_path / 'own.pth')
        with pytest.raises(ValueError, match=message):
            hub.check_network(config_of(), load_weights(tmp_path / 'own.pth'))


def test_the_share_of_the_crop_comes_back_from_timms_division():
    assert hub._share(224, 256) == 0.875
    for side in range(1, 400):
        for edge in range(side, 2 * side + 40):
            share = hub._share(side, edge)
            assert math.floor(side / share) == edge and share == pytest.approx(side / edge, abs=2e-6)


def test_several_labels_and_another_mean_stand_in_the_config():
    values = dict(labels=['a', 'b'], size=[32, 48], fit='squash', backend='pillow', interpolation='bilinear')
    said = Metadata(**values, channels='RGB', mean=[51.0] * 3, std=[102.0] * 3, labels_of_an_image='several')
    weights = SimpleNamespace(structure=SimpleNamespace(variant='s0', num_conv_branches=(4, 4, 4, 4, 4)))
    config = json.loads(json.dumps(hub.hub_config(said, weights)))
    assert (config['architecture'], config['problem_type']) == ('mobileone_s0', 'multi_label_classification')
    pretrained = config['pretrained_cfg']
    assert (pretrained['input_size'], pretrained['mean'], pretrained['std']) == ([3, 32, 48], [0.2] * 3, [0.4] * 3)
    assert (pretrained['crop_mode'], pretrained['crop_pct']) == ('squash', 1.0)


# ---- with transformers, and the larger variants --------------------------------------------------------------------


@pytest.mark.apps
@pytest.mark.parametrize('variant', ['s0', 's1', 's2', 's3', 's4'])
def test_timm_and_transformers_name_the_photo(variant, tmp_path, photo):
    transformers = pytest.importorskip('transformers', reason="transformers' pipeline is not installed")
    config = config_of(variant)
    source = checkpoint(tmp_path / 'net.pth', config, variant)
    hub.convert(source, tmp_path / 'hub')
    scores = expected(config, source, photo).softmax(1)[0].tolist()
    pipeline = transformers.pipeline('image-classification', model=str(tmp_path / 'hub'), device='cpu')
    found = {each['label']: each['score'] for each in pipeline(str(photo), top_k=None)}
    assert found == {name: pytest.approx(score, abs=1e-5) for name, score in zip(NAMES, scores, strict=True)}
    model = timm.create_model(f'local-dir:{tmp_path / "hub"}', pretrained=True).eval()
    stored = safetensors.torch.load_file(tmp_path / 'hub' / 'model.safetensors')
    assert all(torch.equal(tensor, stored[key]) for key, tensor in model.state_dict().items())


@pytest.mark.apps
def test_transformers_takes_several_labels(tmp_path, photo):
    transformers = pytest.importorskip('transformers', reason="transformers' pipeline is not installed")
    config = config_of()
    config.model.head.type = 'MultiLabelLinearClsHead'
    config.model.head.pop('topk', None)
    config.model.head.loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
    source = checkpoint(tmp_path / 'net.pth', config)
    hub.convert(source, tmp_path / 'hub')
    scores = expected(config, source, photo).sigmoid()[0].tolist()
    pipeline = transformers.pipeline('image-classification', model=str(tmp_path / 'hub'), device='cpu')
    found = {each['label']: each['score'] for each in pipeline(str(photo), top_k=None)}
    assert found == {name: pytest.approx(score, abs=1e-5) for name, score in zip(NAMES, scores, strict=True)}
