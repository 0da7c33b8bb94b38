"""The one finder of photos: what is found, what is left out and said, links, odd files; and what is decoded how."""

import io
import os
import socket

import numpy as np
import pytest
from PIL import Image

from mobileone_ext.data import decode
from mobileone_ext.data.images import SUFFIXES, class_folders, find_images, images_below, spread
from mobileone_ext.data.transforms import LoadImageFromFile, RandomResizedCrop, ResizeEdge


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'')
    return path


def test_photos_of_every_kind_and_nothing_else(tmp_path):
    names = [
        'a.jpg',
        'B.JPG',
        'c.webp',
        'd.tif',
        'e.TIFF',
        'f.ppm',
        'g.JPEG',
        'sub/deeper/h.png',
        'i.gif',
        'name.with.dots.bmp',
    ]
    hidden = ['.a.jpg', '._b.jpg', '.thumbnails/c.jpg', '.ipynb_checkpoints/d.jpg', '__MACOSX/e.jpg', '@eaDir/f.jpg']
    others = ['notes.txt', 'list.TXT', 'noend', 'photo.jpg.part']
    for name in names + hidden + others:
        touch(tmp_path / name)
    actual = images_below(tmp_path)
    assert actual == sorted(names)
    folders = ["hidden '.ipynb_checkpoints'", "hidden '.thumbnails'", "hidden '@eaDir'", "hidden '__MACOSX'"]
    others = {'hidden': 2, '.txt': 2, 'without a suffix': 1, '.part': 1}
    assert actual.left_out == {**others, **dict.fromkeys(folders, 1)}
    assert actual.note.startswith(
        "left out: 2 .txt, 2 hidden, 1 .part, 1 hidden '.ipynb_checkpoints', 1 hidden '.thumb"
    )
    assert images_below(tmp_path, ('.jpg',)) == ['B.JPG', 'a.jpg']
    assert {'.webp', '.tif', '.tiff', '.ppm', '.jpg', '.avif'} <= set(SUFFIXES)
    classes = class_folders(tmp_path)
    assert classes == ['sub']
    assert classes.left_out == {**others, 'photos in no class folder': 9, **dict.fromkeys(folders, 1)}


def test_links_are_followed_without_circles(tmp_path):
    train = tmp_path / 'train'
    for name in ('cat/1.jpg', 'dog/2.jpg'):
        touch(train / name)
    touch(tmp_path / 'elsewhere' / 'deep' / '3.jpg')
    (train / 'cat' / 'again').symlink_to(train / 'cat')
    (train / 'cat' / 'up').symlink_to(train)  # would bring the dogs in
    (train / 'cat' / 'more').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere' / 'deep' / 'back').symlink_to(tmp_path / 'elsewhere')
    (train / 'cat' / 'gone.jpg').symlink_to(tmp_path / 'nowhere')
    (train / 'cat' / 'self.jpg').symlink_to(train / 'cat' / 'self.jpg')
    (train / 'cat' / 'one.jpg').symlink_to(tmp_path / 'elsewhere' / 'deep' / '3.jpg')
    (train / 'bird').symlink_to(tmp_path / 'elsewhere')
    actual = images_below(train / 'cat')
    assert actual == ['1.jpg', 'more/deep/3.jpg', 'one.jpg']
    assert actual.left_out == {'broken links': 2}
    assert class_folders(train) == ['bird', 'cat', 'dog']
    assert images_below(train / 'bird') == ['deep/3.jpg']
    assert len(images_below(train)) == 4


def test_many_links_across_end_quickly(tmp_path):
    for one in range(12):
        touch(tmp_path / str(one) / 'photo.jpg')
        for other in range(12):
            (tmp_path / str(one) / f'to{other}').symlink_to(tmp_path / str(other))
    assert len(images_below(tmp_path)) == 12


def test_what_is_no_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / 'pipe.jpg')
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / 's.jpg'))
        touch(tmp_path / 'photo.jpg')
        actual = find_images([tmp_path, tmp_path / 'pipe.jpg'])
    assert actual == [tmp_path / 'photo.jpg']
    assert actual.left_out == {'pipes, sockets or devices': 3}


def test_names_that_are_no_text(tmp_path):
    name = os.fsencode(tmp_path) + b'/caf\xe9\n.jpg'
    with open(name, 'wb'):
        pass
    assert [os.fsencode(path) for path in find_images([tmp_path])] == [name]


def test_what_is_not_there_and_what_is_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.jpg: no such file or folder'):
        find_images([tmp_path / 'none.jpg'])
    with pytest.raises(ValueError, match='none.jpg: no such file or folder.*; .*nor.jpg: no such file'):
        find_images([tmp_path / 'none.jpg', tmp_path / 'nor.jpg'], [])
    touch(tmp_path / 'notes.txt')
    with pytest.raises(ValueError, match=r'no images in this folder \(left out: 1 .txt\)'):
        find_images([tmp_path])
    assert find_images([tmp_path / 'notes.txt']) == [tmp_path / 'notes.txt']  # named, so taken


@pytest.mark.parametrize(
    'count, expected', [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, list(range(10))), (99, list(range(10)))]
)
def test_spread(count, expected):
    assert spread(range(10), count) == expected


def encoded(image, form, **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


RAMP = np.linspace(0, 65535, 60 * 80).reshape(60, 80).astype(np.uint16)
SCALED = np.round(RAMP / 257).astype(np.uint8)


@pytest.mark.parametrize('form', ['PNG', 'TIFF', 'PPM', 'JPEG2000'])
@pytest.mark.parametrize('gray', [False, True])
def test_16_bits_are_scaled(form, gray, tmp_path):
    path = tmp_path / 'ramp'
    path.write_bytes(encoded(Image.fromarray(RAMP), form))
    actual = LoadImageFromFile(color_type='grayscale' if gray else 'color')(dict(img_path=str(path)))['img']
    assert actual.shape == ((60, 80) if gray else (60, 80, 3))
    assert np.abs((actual if gray else actual[..., 0]).astype(int) - SCALED).max() <= 1


def test_16_bits_are_turned_too():
    exif = Image.Exif()
    exif[274] = 6
    actual = decode.decode(encoded(Image.fromarray(RAMP), 'PNG', exif=exif))
    np.testing.assert_array_equal(actual[..., 0], np.rot90(SCALED, -1))


@pytest.mark.parametrize('kind, word', [(np.float32, 'floating point'), (np.int32, '32-bit')])
def test_ranges_that_nobody_knows_are_refused_by_name(kind, word, tmp_path):
    path = tmp_path / 'measured.tif'
    path.write_bytes(encoded(Image.fromarray(np.ones((9, 9), kind)), 'TIFF'))
    with pytest.raises(ValueError, match=rf'measured\.tif: not a readable image \(pixels are {word}'):
        LoadImageFromFile()(dict(img_path=str(path)))


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8).repeat(10, 0).repeat(10, 1))
MODES = {
    '1-bit': ('PNG', PHOTO.convert('1')),
    'gray': ('PNG', PHOTO.convert('L')),
    'gray with alpha': ('PNG', PHOTO.convert('LA')),
    'palette': ('PNG', PHOTO.convert('P', palette=Image.Palette.ADAPTIVE)),
    'alpha': ('WEBP', PHOTO.convert('RGBA')),
    'CMYK TIFF': ('TIFF', PHOTO.convert('CMYK')),
    'AVIF': ('AVIF', PHOTO),
    'PGM': ('PPM', PHOTO.convert('L')),
}


@pytest.mark.parametrize('mode', MODES)
def test_modes(mode):
    form, image = MODES[mode]
    options = dict(lossless=True) if form == 'WEBP' else {}
    actual = decode.decode(encoded(image, form, **options))
    assert actual.dtype == np.uint8 and actual.shape == (60, 80, 3)
    expected = np.asarray(image.convert('RGB'))[..., ::-1]
    assert np.abs(actual.astype(int) - expected).mean() < 12
    assert decode.decode(encoded(image, form, **options), gray=True).shape == (60, 80)


@pytest.mark.parametrize('form', ['GIF', 'WEBP', 'PNG', 'TIFF'])
def test_of_an_animation_the_first_picture(form):
    pictures = [Image.new('RGB', (8, 6), color) for color in ('white', 'black', 'black')]
    actual = decode.decode(encoded(pictures[0], form, save_all=True, append_images=pictures[1:]))
    assert actual.shape == (6, 8, 3) and (actual > 250).all()


@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('lazy', [False, True])
def test_photos_stand_upright(form, lazy, tmp_path):
    """In training, which may decode late, as in validation."""
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / 'photo'
    path.write_bytes(encoded(PHOTO, form, exif=exif))
    results = LoadImageFromFile(lazy=lazy)(dict(img_path=str(path)))
    assert results['img'].shape[:2] == results['img_shape'] == (80, 60)
    top = np.asarray(PHOTO)[..., ::-1][:, 0].mean(0)  # the left edge comes up
    assert np.abs(results['img'][0].mean(0) - top).max() < 12


@pytest.mark.parametrize('size, word', [((24000, 24000), 'pixels'), ((1, 5000), '256 times')])
@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'PPM'])
def test_sizes_that_no_photo_has_are_refused_from_the_header(size, word, form, tmp_path):
    width, height = size
    small = encoded(Image.new('RGB', (8, 8)), form)
    if form == 'JPEG':
        start = small.index(b'\xff\xc0') + 5
        data = small[:start] + height.to_bytes(2, 'big') + width.to_bytes(2, 'big') + small[start + 4 :]
    elif form == 'PNG':
        import zlib

        header = b'IHDR' + width.to_bytes(4, 'big') + height.to_bytes(4, 'big') + small[24:29]
        data = small[:12] + header + zlib.crc32(header).to_bytes(4, 'big') + small[33:]
    else:
        data = small.replace(b'8 8', f'{width} {height}'.encode(), 1)
    path = tmp_path / 'huge'
    path.write_bytes(data)
    for lazy in (False, True):
        with pytest.raises(ValueError, match=rf'huge: not a readable image \(.*{word}'):
            LoadImageFromFile(lazy=lazy)(dict(img_path=str(path)))


def test_heic_without_its_reader_is_named(tmp_path):
    if '.heic' in SUFFIXES:
        pytest.skip('pillow-heif is installed')
    touch(tmp_path / 'a.jpg')
    touch(tmp_path / 'b.HEIC')
    assert find_images([tmp_path]).note == 'left out: 1 .heic (pip install pillow-heif reads them)'
    path = tmp_path / 'c.jpg'
    path.write_bytes(b'\0\0\0\x18ftypheic' + bytes(20))
    with pytest.raises(ValueError, match='pip install pillow-heif'):
        LoadImageFromFile()(dict(img_path=str(path)))


def test_heic_with_its_reader(tmp_path):
    pytest.importorskip('pillow_heif')
    path = tmp_path / 'photo.HEIC'
    path.write_bytes(encoded(PHOTO, 'HEIF', quality=90))
    assert find_images([tmp_path]) == [path]
    actual = LoadImageFromFile()(dict(img_path=str(path)))['img']
    assert np.abs(actual.astype(int) - np.asarray(PHOTO)[..., ::-1]).mean() < 12


def test_gray_photos_pass_our_transforms():
    image = np.array(PHOTO.convert('L'))
    for transform in (
        RandomResizedCrop(24, backend='pillow'),
        RandomResizedCrop(200),
        ResizeEdge(32, backend='pillow'),
    ):
        np.random.seed(0)
        actual = transform(dict(img=image, img_path='x'))['img']
        np.random.seed(0)
        color = transform(dict(img=np.repeat(image[..., None], 3, 2), img_path='x'))['img']
        assert actual.ndim == 2
        np.testing.assert_allclose(actual, color[..., 0], atol=1)
