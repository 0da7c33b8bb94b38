"""Our image transforms against mmpretrain's by Pillow, and torchvision's: the same pixels; and what they refuse."""

import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile as MmcvLoad
from mmengine.dataset import Compose, default_collate
from mmpretrain.datasets import transforms as mmpretrain
from mmpretrain.registry import MODELS
from PIL import Image
from torchvision.transforms import v2

from mobileone_ext.cli import load_config
from mobileone_ext.data import decode, transforms
from mobileone_ext.data.decode import Jpeg
from mobileone_ext.data.transforms import LoadImageFromFile, RandomResizedCrop, reduction
from mobileone_ext.metadata import IMAGENET_MEAN, IMAGENET_STD

KINDS = {
    'photo': dict(),
    '4:4:4': dict(subsampling=0),
    'progressive': dict(progressive=True),
    'gray': dict(mode='L'),
    'CMYK': dict(mode='CMYK'),
    'turned by EXIF': dict(exif=6),
    'EXIF, upright': dict(exif=1),
    'PNG': dict(format='PNG'),
    'PNG with alpha': dict(format='PNG', mode='RGBA'),
    'PNG with a palette': dict(format='PNG', mode='P'),
}
FAST = ('photo', '4:4:4', 'progressive', 'gray', 'EXIF, upright')


def photo(width=123, height=90):
    """Smooth colors with a little noise."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8)).resize((width, height), Image.BICUBIC)
    return Image.fromarray((np.asarray(small) * 0.97 + rng.integers(0, 7, (height, width, 3))).astype(np.uint8))


def write(path, size=(123, 90), mode='RGB', format='JPEG', exif=None, **options):
    if exif:
        tags = Image.Exif()
        tags[274] = exif
        options['exif'] = tags
    photo(*size).convert(mode).save(path, format, **options)
    return str(path)


def difference(one, other):
    one, other = np.asarray(one, float), np.asarray(other, float)
    assert one.shape == other.shape
    return np.abs(one - other)


@pytest.mark.parametrize('kind', KINDS)
def test_every_file_loads_as_by_pillow(kind, tmp_path):
    path = write(tmp_path / 'image', **KINDS[kind])
    actual = LoadImageFromFile()(dict(img_path=path))
    expected = MmcvLoad(imdecode_backend='pillow')(dict(img_path=path))
    np.testing.assert_array_equal(actual['img'], expected['img'])
    assert {**actual, 'img': 0} == {**expected, 'img': 0}
    lazy = LoadImageFromFile(lazy=True)(dict(img_path=path))['img']
    assert isinstance(lazy, Jpeg) == (kind in FAST) and lazy.shape == expected['img'].shape


@pytest.mark.parametrize('options', [dict(to_float32=True), dict(color_type='grayscale'), dict(color_type='unchanged')])
@pytest.mark.parametrize('lazy', [False, True])
def test_options_of_mmcv(options, lazy, tmp_path):
    path = write(tmp_path / 'image.jpg')
    actual = LoadImageFromFile(lazy=lazy, **options)(dict(img_path=path))['img']
    expected = MmcvLoad(imdecode_backend='pillow', **options)(dict(img_path=path))['img']
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


def test_an_image_in_memory_stays():
    results = dict(img=np.zeros((4, 4, 3), np.uint8))
    assert LoadImageFromFile()(results) is results


@pytest.mark.parametrize('keep', [0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_named(keep, tmp_path):
    file = tmp_path / 'image.jpg'
    path = write(file)
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
    with pytest.raises(ValueError, match=r'image\.jpg: not a readable image'):
        LoadImageFromFile()(dict(img_path=path))
    with pytest.raises(ValueError, match=r'image\.jpg: not a readable image'):
        RandomResizedCrop(32)(LoadImageFromFile(lazy=True)(dict(img_path=path)))


def test_what_is_no_image_or_not_there(tmp_path):
    (tmp_path / 'text.jpg').write_bytes(b'\xff\xd8nothing')
    for name, error in (('text.jpg', ValueError), ('none.jpg', FileNotFoundError)):
        path = str(tmp_path / name)
        with pytest.raises(error, match=name):
            LoadImageFromFile(lazy=True)(dict(img_path=path))
        assert LoadImageFromFile(ignore_empty=True)(dict(img_path=path)) is None


@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
@pytest.mark.parametrize('scale', [16, 60, 200])
def test_crops_are_mmpretrains_for_a_seed(backend, scale, tmp_path):
    path = write(tmp_path / 'image.jpg')
    image = MmcvLoad(imdecode_backend='pillow')(dict(img_path=path))['img']
    ours, theirs = (kind(scale, backend=backend) for kind in (RandomResizedCrop, mmpretrain.RandomResizedCrop))
    for seed in range(20):
        results = []
        for transform in (ours, theirs):
            np.random.seed(seed)
            results.append(transform(dict(img=image)))
        assert difference(results[0]['img'], results[1]['img']).max() <= 1
        assert results[0]['img_shape'] == (scale, scale)


@pytest.mark.parametrize(('side', 'factor'), [(63, 1), (64, 2), (128, 4), (255, 4), (256, 8), (600, 8)])
def test_reduction(side, factor):
    assert reduction((side, 900), (32, 32)) == reduction((900, side), (32, 32)) == factor


@pytest.mark.parametrize('size', [(300, 40), (40, 300), (300, 200), (50, 40)], ids=str)
def test_resizing_is_pillows(size):
    """Antialiased where either side shrinks."""
    image = photo(*size)
    actual = transforms.resize(np.array(image), (96, 96), 'bilinear', 'pillow')
    assert difference(actual, image.resize((96, 96), Image.BILINEAR)).max() <= 1


@pytest.mark.parametrize('size', [(300, 200), (200, 301), (90, 50)], ids=str)
def test_resized_edges_are_mmpretrains(size):
    image = np.array(photo(*size))
    options = dict(scale=96, edge='short', backend='pillow')
    actual, expected = (kind(**options)(dict(img=image)) for kind in (transforms.ResizeEdge, mmpretrain.ResizeEdge))
    assert difference(actual.pop('img'), expected.pop('img')).max() <= 1
    assert actual == expected


def test_a_large_crop_is_decoded_small(tmp_path, monkeypatch):
    """At the largest fraction that leaves it no smaller than the result, and the picture is the same."""
    path = write(tmp_path / 'image.jpg', size=(517, 389))
    decoded = []
    whole = decode.simplejpeg.decode_jpeg
    monkeypatch.setattr(decode.simplejpeg, 'decode_jpeg', lambda *a, **k: decoded.append(whole(*a, **k)) or decoded[-1])
    expected_crop = mmpretrain.RandomResizedCrop(48, backend='pillow')
    image = MmcvLoad(imdecode_backend='pillow')(dict(img_path=path))['img']
    seen = set()
    for seed in range(30):
        np.random.seed(seed)
        actual = RandomResizedCrop(48, backend='pillow')(LoadImageFromFile(lazy=True)(dict(img_path=path)))['img']
        np.random.seed(seed)
        _, _, height, width = expected_crop.rand_crop_params(image)
        factor = reduction((height, width), (48, 48))
        assert decoded[-1].shape[:2] == (-(-389 // factor), -(-517 // factor))
        np.random.seed(seed)
        assert difference(actual, expected_crop(dict(img=image))['img']).mean() < 3
        seen.add(factor)
    assert seen >= {2, 4}


def test_a_fraction_that_is_refused_still_gives_the_crop(tmp_path, monkeypatch):
    """libjpeg-turbo refuses what Pillow forgives: then the whole image comes, and the crop is cut from that."""
    path = write(tmp_path / 'image.jpg', size=(517, 389))
    np.random.seed(0)
    expected = RandomResizedCrop(48, backend='pillow')(LoadImageFromFile()(dict(img_path=path)))['img']

    def refuse(*args, **kwargs):
        raise ValueError('extraneous bytes')

    monkeypatch.setattr(decode.simplejpeg, 'decode_jpeg', refuse)
    np.random.seed(0)
    actual = RandomResizedCrop(48, backend='pillow')(LoadImageFromFile(lazy=True)(dict(img_path=path)))['img']
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize('resize_edge, apart', [(mmpretrain.ResizeEdge, 0), (transforms.ResizeEdge, 1)])
def test_validation_pixels_of_photos_are_pillows(resize_edge, apart, shared):
    """Resize 256, center crop 224, as everybody evaluates: Pillow's pixels; by our ResizeEdge within a gray level."""
    folder = shared('data', 'ilsvrc_val_1300', 'val')
    reference = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
    steps = LoadImageFromFile(), resize_edge(256, backend='pillow'), mmpretrain.CenterCrop(224)
    for path in sorted(folder.iterdir())[:40]:
        results = dict(img_path=str(path))
        for step in steps:
            results = step(results)
        actual = difference(results['img'][..., ::-1], reference(Image.open(path).convert('RGB')))
        assert actual.max() <= apart and actual.mean() < 0.3


@pytest.mark.parametrize('task', ['train', 'val'])
def test_pixels_travel_as_bytes_and_are_normalized_behind_the_loader(task, tmp_path):
    """What ImageNet's loader hands on is uint8; the data preprocessor, on the model's device, makes floats of it."""
    config = load_config('configs/mobileone_s0_8xb32.py')
    pipeline = Compose(config[f'{task}_dataloader'].dataset.pipeline)
    batch = default_collate([pipeline(dict(img_path=write(tmp_path / 'image.jpg'), gt_label=1)) for _ in range(2)])
    assert batch['inputs'].dtype == torch.uint8 and batch['inputs'].shape == (2, 3, 224, 224)
    preprocessor = MODELS.build(config.model.data_preprocessor)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = ((batch['inputs'].flip(1).double() - mean) / std).float()
    torch.testing.assert_close(preprocessor(batch)['inputs'], expected)


@pytest.mark.parametrize('task', ['val', 'test'])
def test_one_option_makes_evaluation_fast(task):
    step = f'{task}_dataloader.dataset.pipeline.ResizeEdge.type'
    config = load_config('configs/mobileone_s0_8xb32.py', {step: 'mobileone_ext.ResizeEdge'})
    pipeline = Compose(config[f'{task}_dataloader'].dataset.pipeline)
    assert [type(transform) for transform in pipeline.transforms].count(transforms.ResizeEdge) == 1
    other = config[f'{"val" if task == "test" else "test"}_dataloader'].dataset.pipeline
    assert [step['type'] for step in other].count('ResizeEdge') == 1
