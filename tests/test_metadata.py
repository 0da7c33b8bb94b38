"""One schema for exported files, checkpoints and pages: what is written is read, and steps become a fit and back."""

import json

import pytest
import torch

from mobileone_ext.metadata import Metadata, fit_of

LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackInputs')
FULL = Metadata(
    labels=['123', 'a "b"', '\N{CAT FACE}'],
    size=[96, 128],
    fit='crop',
    crop=96 / 110,
    interpolation='bicubic',
    backend='pillow',
    channels='RGB',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    input='pixels 0..255',
    output='logits',
    labels_of_an_image='several',
    temperature=1.25,
    threshold=[0.5, 0.25, 0.75],
    source='123',
    source_sha256='0' * 64,
    versions=dict(torch='2.0'),
    layout='NCHW',
    precision='float32',
    others=dict(sums='7'),
)


def test_what_is_written_is_read():
    assert all(isinstance(text, str) for text in FULL.write().values())
    assert Metadata.read(FULL.write()) == FULL
    assert Metadata.read(json.loads(json.dumps(FULL.values()))) == FULL
    assert Metadata.read(Metadata().write()) == Metadata()


@pytest.mark.parametrize(
    ('name', 'bad'),
    [
        ('labels', '{"a": 1}'),
        ('labels', '["a", 1]'),
        ('size', '[224]'),
        ('size', '[0, 224]'),
        ('size', '[224, 1e9]'),
        ('crop', '0.00001'),
        ('crop', '[1]'),
        ('mean', '[NaN]'),
        ('std', 'wide'),
        ('temperature', '0'),
        ('threshold', '"high"'),
        ('threshold', '[0.5, 0.25]'),
        ('fit', 7),
    ],
)
def test_what_is_not_of_its_kind_is_not_said(name, bad):
    read = Metadata.read({**FULL.write(), name: bad})
    assert getattr(read, name) is None
    assert read.source == '123'


@pytest.mark.parametrize('names', [['0', '1'], None])
def test_numbers_are_no_names(names):
    assert Metadata(labels=names).names in (None, [])
    assert Metadata(labels=['1', '0']).names == ['1', '0']


@pytest.mark.parametrize('edge', range(64, 520, 7))
@pytest.mark.parametrize('size', [64, 224, (64, 63)])
def test_a_crop_and_its_steps_are_one(size, edge):
    sides = size if isinstance(size, tuple) else (size, size)
    steps = [
        LOAD,
        dict(type='mmpretrain.ResizeEdge', scale=edge, backend='pillow'),
        dict(type='CenterCrop', crop_size=size),
        PACK,
    ]
    if edge < min(sides) or edge > 10 * min(sides):
        assert fit_of(steps) == {}
        return
    (load, resize, crop, _) = Metadata(**fit_of(steps)).pipeline()
    assert load == dict(type='mobileone_ext.LoadImageFromFile')
    assert resize == dict(type='ResizeEdge', scale=edge, edge='short', backend='pillow', interpolation='bilinear')
    assert crop == dict(type='CenterCrop', crop_size=sides)


def test_other_steps():
    squash = dict(type='Resize', scale=(64, 32))
    gray = dict(LOAD, color_type='grayscale')
    assert fit_of([LOAD, squash, PACK]) == dict(size=[32, 64], fit='squash', interpolation='bilinear', backend='cv2')
    pad = dict(type='mobileone_ext.ResizePad', scale=64, interpolation='bicubic')
    assert fit_of([LOAD, pad, PACK]) == dict(size=[64, 64], fit='pad', interpolation='bicubic', backend='pillow')
    assert fit_of(Metadata(**fit_of([LOAD, pad, PACK])).pipeline()) == fit_of([LOAD, pad, PACK])
    assert fit_of([gray, squash, PACK])['channels'] == 'gray'
    assert Metadata(**fit_of([gray, squash, PACK])).pipeline()[0]['color_type'] == 'grayscale'
    for steps in (
        [],
        [LOAD, PACK],
        [LOAD, squash, squash, PACK],
        [LOAD, dict(squash, keep_ratio=True), PACK],
        [LOAD, dict(type='ResizeEdge', scale=64, edge='long'), dict(type='CenterCrop', crop_size=32), PACK],
        [dict(LOAD, to_float32=True), squash, PACK],
        [LOAD, dict(squash, type='other.Resize'), PACK],
    ):
        assert fit_of(steps) == {}, steps


def test_a_size_alone_is_cut_out_of_the_middle():
    metadata = Metadata(size=[224, 224])
    assert not metadata.says_fit and metadata.pipeline()[1]['scale'] == 256
    assert not Metadata(size=[224, 224], fit='crop').says_fit
    assert Metadata().pipeline() is None and Metadata(size=[8, 8], fit='stretch').pipeline() is None


def test_it_is_plain_data_in_a_checkpoint(tmp_path):
    torch.save(dict(meta=FULL.values()), tmp_path / 'net.pth')
    assert Metadata.read(torch.load(tmp_path / 'net.pth', weights_only=True)['meta']) == FULL
