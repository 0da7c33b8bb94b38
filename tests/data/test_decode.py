"""The one reader of photos: what each kind of pixel looks like, over one ground, upright, whatever else is damaged.

Files are written by hand, byte by byte, where Pillow does not write what others do.
"""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mobileone_ext.data.decode import decode, open_jpeg, read_rgb
from mobileone_ext.data.resize import resize_dataset
from mobileone_ext.data.transforms import LoadImageFromFile
from mobileone_ext.deploy.predict import draw
from mobileone_ext.engine.finetuning.pictures import TILE, _thumbnail

GROUND = (124, 117, 104)
RED, HIDDEN = (250, 10, 10), (10, 250, 10)
LIGHT, DARK = 200, 50  # gray levels of the left and the right pixel


def chunk(name, content, crc=None):
    return struct.pack('>I', len(content)) + name + content + struct.pack('>I', crc or zlib.crc32(name + content))


def png(depth, color, row, *chunks, after=()):
    """Two pixels, the bytes of ``row``; ``chunks`` before them."""
    header = struct.pack('>IIBBBBB', 2, 1, depth, color, 0, 0, 0)
    body = [chunk(b'IHDR', header), *chunks, chunk(b'IDAT', zlib.compress(b'\0' + row)), *after, chunk(b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(body)


def tiff(order, photometric, bits, row, size=(2, 1), big=False, **tags):
    """Pixels, the bytes of ``row``; ``tags`` by name t262 as (type, values)."""
    codes = {1: 'B', 3: 'H', 4: 'I', 5: 'Q'}
    values = {256: (3, [size[0]]), 257: (3, [size[1]]), 258: (3, bits), 259: (3, [1]), 262: (3, [photometric])}
    values |= {273: (4, [0]), 277: (3, [len(bits)]), 278: (3, [size[1]]), 279: (4, [len(row)])}
    values |= {int(name[1:]): value for name, value in tags.items()}
    entry, room = ('HHQ', 8) if big else ('HHI', 4)
    start = 16 if big else 8
    after = start + (8 if big else 2) + len(values) * (20 if big else 12) + room
    placed = b''.join(struct.pack(order + codes[kind] * len(v), *v) for kind, v in values.values())
    values[273] = (4, [after + len(placed)])
    entries, extra = b'', b''
    for tag in sorted(values):
        kind, numbers = values[tag]
        raw = struct.pack(order + codes[kind] * len(numbers), *numbers)
        if len(raw) > room:
            raw, extra = struct.pack(order + ('Q' if big else 'I'), after + len(extra)), extra + raw
        entries += struct.pack(order + entry, tag, kind, len(numbers)) + raw.ljust(room, b'\0')
    head = struct.pack(order + ('HHHQQ' if big else 'HIH'), *((43, 8, 0, 16) if big else (42, 8)), len(values))
    return {'<': b'II', '>': b'MM'}[order] + head + entries + bytes(room) + extra.ljust(len(placed), b'\0') + row


def encoded(image, form, **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def two(mode, left, right, size=1):
    image = Image.new(mode, (2 * size, size), left)
    image.paste(right, (size, 0, 2 * size, size))
    return image


def pixels(data):
    """The first and the last pixel, RGB."""
    actual = decode(data)[..., ::-1]
    return tuple(actual[0, 0].tolist()), tuple(actual[-1, -1].tolist())


def deep(*values):
    return b''.join(struct.pack('>H', value * 257) for value in values)


PALETTE = chunk(b'PLTE', bytes((*RED, *HIDDEN)))
RGBA, LA = two('RGBA', (*RED, 255), (*HIDDEN, 0)), two('LA', (LIGHT, 255), (DARK, 0))
ONE = two('P', 0, 1)
ONE.putpalette([*RED, *HIDDEN])
COLORS = [RED[0], HIDDEN[0]], [RED[1], HIDDEN[1]], [RED[2], HIDDEN[2]]
COLORMAP = (3, [level * 257 for channel in COLORS for level in channel + [0] * 254])
# The left pixel is red, the right one a green that nobody is to see.
COLOR_BEHIND = {
    'RGBA PNG': encoded(RGBA, 'PNG'),
    'RGBA WebP': encoded(RGBA, 'WEBP', lossless=True, exact=True),
    'RGBA TIFF': encoded(RGBA, 'TIFF'),
    'RGBA TGA': encoded(RGBA, 'TGA'),
    'RGBA JPEG 2000': encoded(RGBA.resize((32, 16), 0), 'JPEG2000'),
    'multiplied RGBA TIFF': tiff('<', 2, [8] * 4, bytes((*RED, 255, *HIDDEN, 0)), t338=(3, [1])),
    '16-bit RGBA PNG': png(16, 6, deep(*RED, 255, *HIDDEN, 0)),
    '16-bit RGB PNG with a key': png(16, 2, deep(*RED, *HIDDEN), chunk(b'tRNS', deep(*HIDDEN))),
    'RGB PNG with a key': png(8, 2, bytes((*RED, *HIDDEN)), chunk(b'tRNS', struct.pack('>HHH', *HIDDEN))),
    'palette PNG, index': png(8, 3, b'\0\1', PALETTE, chunk(b'tRNS', b'\xff\0')),
    'palette PNG, bytes': png(8, 3, b'\0\1', PALETTE, chunk(b'tRNS', b'\xfe\0')),
    'palette PNG, 1 bit': png(1, 3, b'\x40', PALETTE, chunk(b'tRNS', b'\xff\0')),
    'PA TIFF': tiff('<', 3, [8, 8], bytes((0, 255, 1, 0)), t338=(3, [2]), t320=COLORMAP),
    'GIF': encoded(ONE, 'GIF', transparency=1),
}
GRAY_BEHIND = {
    'LA PNG': encoded(LA, 'PNG'),
    'LA TIFF': encoded(LA, 'TIFF'),
    'LA TIFF, white is zero': tiff('>', 0, [8, 8], bytes((255 - LIGHT, 255, 255 - DARK, 0)), t338=(3, [2])),
    'multiplied LA TIFF': tiff('<', 1, [8, 8], bytes((LIGHT, 255, DARK, 0)), t338=(3, [1])),
    '16-bit LA PNG': png(16, 4, deep(LIGHT, 255, DARK, 0)),
    'L PNG with a key': png(8, 0, bytes((LIGHT, DARK)), chunk(b'tRNS', struct.pack('>H', DARK))),
    '16-bit L PNG with a key': png(16, 0, deep(LIGHT, DARK), chunk(b'tRNS', deep(DARK))),
}


@pytest.mark.parametrize('kind', COLOR_BEHIND)
def test_hidden_colors_never_show(kind):
    red, ground = pixels(COLOR_BEHIND[kind])
    np.testing.assert_allclose(red, RED, atol=1)
    np.testing.assert_allclose(ground, GROUND, atol=1)


@pytest.mark.parametrize('kind', GRAY_BEHIND)
def test_gray_has_the_same_ground(kind):
    assert pixels(GRAY_BEHIND[kind]) == ((LIGHT,) * 3, GROUND)


@pytest.mark.parametrize('depth, row, key, shown', [(1, 0x80, 0, 255), (2, 0x90, 1, 170), (4, 0x93, 3, 153)])
def test_a_gray_key_is_a_level_of_the_file(depth, row, key, shown):
    assert pixels(png(depth, 0, bytes([row]), chunk(b'tRNS', struct.pack('>H', key)))) == ((shown,) * 3, GROUND)


@pytest.mark.parametrize('form', ['AVIF', 'HEIF'])
def test_ground_of_lossy_files(form):
    if form == 'HEIF':
        pytest.importorskip('pillow_heif')
    red, ground = pixels(encoded(RGBA.resize((128, 64), 0), form, quality=100))
    np.testing.assert_allclose(red, RED, atol=3)
    np.testing.assert_allclose(ground, GROUND, atol=1)


def test_what_is_half_transparent_is_half_of_each():
    half = two('RGBA', (*RED, 255), (*HIDDEN, 128))
    expected = np.array(HIDDEN) * 128 / 255 + np.array(GROUND) * 127 / 255
    np.testing.assert_allclose(pixels(encoded(half, 'PNG'))[1], expected, atol=1)


GRAYS = {  # bits: (bytes of the light and the dark pixel, by byte order)
    8: lambda order, light, dark: bytes((light, dark)),
    16: lambda order, light, dark: struct.pack(order + 'HH', light * 257, dark * 257),
}


@pytest.mark.parametrize('order, big', [('<', False), ('>', False), ('<', True)])
@pytest.mark.parametrize('bits', GRAYS)
def test_white_is_zero_and_black_is_zero(order, bits, big):
    """Of 16 bits as of 8, in both byte orders, TIFF and BigTIFF."""
    for photometric, expected in ((1, (LIGHT, DARK)), (0, (255 - LIGHT, 255 - DARK))):
        data = tiff(order, photometric, [bits], GRAYS[bits](order, LIGHT, DARK), big=big)
        assert [rgb[0] for rgb in pixels(data)] == list(expected)


def test_white_is_zero_with_one_bit_and_compressed():
    for kind in ('raw', 'group4'):  # Pillow writes Group 4 as faxes are: 0 is white
        data = encoded(two('1', 255, 0, 32), 'TIFF', compression=kind)
        assert pixels(data) == ((255,) * 3, (0,) * 3)
    assert pixels(tiff('<', 0, [1], b'\x40')) == ((255,) * 3, (0,) * 3)


@pytest.mark.parametrize(
    'data, expected',
    [
        (tiff('<', 1, [12], bytes([0xC8, 0x83, 0x22])), ((LIGHT,) * 3, (DARK,) * 3)),
        (tiff('<', 5, [8] * 4, bytes((0, 255, 255, 0, 0, 0, 0, 255))), ((255, 0, 0), (0, 0, 0))),
        (tiff('>', 6, [8] * 3, bytes((76, 85, 255, 255, 128, 128))), ((254, 0, 0), (255, 255, 255))),
        (tiff('<', 8, [8] * 3, bytes((136, 81, 70, 0, 0, 0))), ((255, 0, 0), (0, 0, 0))),  # L*a*b* 53, 81, 70 is red
        (png(1, 0, b'\x80'), ((255,) * 3, (0,) * 3)),
    ],
    ids=['12 bits', 'CMYK', 'YCbCr', 'LAB', '1 bit'],
)
def test_other_pixels(data, expected):
    np.testing.assert_allclose(pixels(data), expected, atol=6)


SIDES = Image.fromarray(np.repeat(np.repeat(np.array([[LIGHT, DARK]], np.uint8), 32, 0), 32, 1))
TAG = struct.pack('>HHIHH', 274, 3, 1, 3, 0)  # lies on its head
HEAD = b'MM\0*\0\0\0\x08'
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
DAMAGED = {  # EXIF: (bytes, whether its orientation can be read)
    'a rational beyond the end': (HEAD + b'\0\2' + TAG + struct.pack('>HHII', 282, 5, 1, 0xFFFFFF) + bytes(4), True),
    'a rational of 0 / 0': (HEAD + b'\0\2' + TAG + struct.pack('>HHII', 282, 5, 1, 38) + bytes(12), True),
    'a rational that is text': (HEAD + b'\0\2' + TAG + struct.pack('>HHIHH', 282, 2, 1, 7, 0) + bytes(4), True),
    'more tags than there are': (HEAD + b'\0\7' + TAG, True),
    'an orientation of 9': (HEAD + b'\0\1' + TAG.replace(b'\0\3\0\0', b'\0\x09\0\0') + bytes(4), False),
    'cut off': (HEAD + b'\0\2' + TAG[:4], False),
    'no EXIF at all': (b'hello, I am a note', False),
}


@pytest.mark.parametrize('kind', DAMAGED)
@pytest.mark.parametrize('form', ['JPEG', 'WEBP', 'PNG'])
@pytest.mark.filterwarnings('error')
def test_a_damaged_exif_costs_no_photo(form, kind, tmp_path):
    content, turned = DAMAGED[kind]
    if form == 'PNG':
        data = encoded(SIDES, form)
        data = data[:33] + chunk(b'eXIf', content) + data[33:]
    elif form == 'JPEG':
        data = encoded(SIDES, form)
        content = b'Exif\0\0' + content
        data = data[:2] + b'\xff\xe1' + struct.pack('>H', len(content) + 2) + content + data[2:]
    else:
        data = encoded(SIDES, form, exif=b'Exif\0\0' + HEAD + b'\0\0' + bytes(len(content)))
        assert data.count(HEAD) == 1
        place = data.index(HEAD)
        data = data[:place] + content + data[place + len(content) :]
    for lazy in (False, True):
        np.testing.assert_allclose(_loaded(data, tmp_path, lazy), (DARK, LIGHT) if turned else (LIGHT, DARK), atol=2)


def _loaded(data, folder, lazy=False):
    """The gray levels of the first and last pixel, as a pipeline loads them."""
    path = folder / 'photo'
    path.write_bytes(data)
    actual = LoadImageFromFile(lazy=lazy)(dict(img_path=str(path)))['img']
    actual = actual if isinstance(actual, np.ndarray) else actual.decode()
    return actual[0, 0, 0], actual[-1, -1, 0]


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('tags', [dict(t282=(5, [0])), dict(t34665=(4, [99999])), dict(t34853=(4, [3]))])
@pytest.mark.filterwarnings('error')
def test_damaged_notes_of_a_tiff(order, tags):
    data = tiff(order, 1, [8], bytes((LIGHT, DARK)), t274=(3, [3]), **tags)
    assert pixels(data) == ((DARK,) * 3, (LIGHT,) * 3)


NOTE = chunk(b'tEXt', b'a\0b')
EXIF = chunk(b'eXIf', HEAD + b'\0\1' + TAG + bytes(4))
BROKEN_PNG = {
    'a chunk without a name': chunk(b'\1\2\3\4', b'content'),
    'a name that is no name': chunk(b'eX1f', b'content'),
    'a wrong checksum': chunk(b'tEXt', b'a\0b', crc=7),
    'a note that fills the memory': chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(1 << 27))),
    'a short size of pixels': chunk(b'pHYs', b'x'),
    'an animation without frames': chunk(b'acTL', b'x'),
}


@pytest.mark.parametrize('kind', BROKEN_PNG)
@pytest.mark.parametrize('place', ['before', 'after'])
def test_a_broken_chunk_costs_no_photo(kind, place):
    row, broken = bytes((LIGHT, DARK)), BROKEN_PNG[kind]
    data = png(8, 0, row, *([broken] if place == 'before' else []), after=[broken] if place == 'after' else [])
    assert pixels(data) == ((LIGHT,) * 3, (DARK,) * 3)


def test_orientation_beside_a_broken_chunk_is_read():
    broken = chunk(b'\1\2\3\4', b'content')
    for chunks in ((broken, EXIF), (EXIF, broken)):
        assert pixels(png(8, 0, bytes((LIGHT, DARK)), *chunks)) == ((DARK,) * 3, (LIGHT,) * 3)


@pytest.mark.parametrize('form', ['GIF', 'PNG', 'WEBP', 'AVIF'])
def test_ground_of_animations(form):
    options = dict(lossless=True, exact=True) if form == 'WEBP' else dict(quality=100) if form == 'AVIF' else {}
    first, second = RGBA.resize((64, 32), 0), Image.new('RGBA', (64, 32), (0, 0, 255, 255))
    red, ground = pixels(encoded(first, form, save_all=True, append_images=[second, second], **options))
    np.testing.assert_allclose(red, RED, atol=3)
    np.testing.assert_allclose(ground, GROUND, atol=1)


def test_orientation_behind_a_thumbnail_is_found():
    """EXIF may hold a JPEG file, whose pixels are not the photo's."""
    exif = Image.Exif()
    exif[305] = 'a camera'
    data = encoded(SIDES, 'JPEG', exif=exif.tobytes() + encoded(SIDES, 'JPEG'), xmp=XMP)
    assert data.index(b'\xff\xda') < data.index(b'tiff:Orientation') and open_jpeg(data) is None
    np.testing.assert_allclose([rgb[0] for rgb in pixels(data)], (DARK, LIGHT), atol=2)
    assert open_jpeg(encoded(SIDES, 'JPEG', exif=exif)) is not None


@pytest.mark.parametrize('form', ['JPEG', 'WEBP', 'PNG', 'TIFF'])
@pytest.mark.parametrize('lazy', [False, True])
def test_orientation_in_xmp_alone(form, lazy, tmp_path):
    """One answer for files that libjpeg-turbo decodes and for those that Pillow does."""
    if form == 'PNG':
        data = encoded(SIDES, form)
        data = data[:33] + chunk(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + XMP) + data[33:]
    elif form == 'TIFF':
        data = tiff('<', 1, [8], bytes((LIGHT, DARK)), t700=(1, list(XMP)))
    else:
        data = encoded(SIDES, form, xmp=XMP)
    np.testing.assert_allclose(_loaded(data, tmp_path, lazy), (DARK, LIGHT), atol=2)


def test_a_broken_photo_is_an_os_error_or_a_value_error():
    """Cut off anywhere, or with any byte another: pixels or one of these two."""
    draw = np.random.default_rng(0)
    for data in (encoded(RGBA, 'PNG'), tiff('<', 0, [8], bytes(2)), encoded(SIDES, 'GIF'), encoded(SIDES, 'WEBP')):
        for _ in range(200):
            broken = bytearray(data[: draw.integers(len(data) // 2, len(data) + 1)])
            broken[draw.integers(len(broken))] = draw.integers(256)
            with contextlib.suppress(OSError, ValueError):
                assert decode(bytes(broken)).shape[2] == 3


SAME = {
    'RGBA': encoded(two('RGBA', (*RED, 255), (*HIDDEN, 0), 64), 'PNG'),
    '16 bits': encoded(Image.fromarray(np.repeat(np.full((64, 64), 257 * DARK, np.uint16), 2, 1)), 'PNG'),
    'XMP': encoded(SIDES.resize((128, 64)), 'JPEG', xmp=XMP, quality=100),
    'a broken chunk': b'',
}
SAME['a broken chunk'] = SAME['RGBA'][:33] + chunk(b'\1\2\3\4', b'') + SAME['RGBA'][33:]


@pytest.mark.parametrize('kind', SAME)
def test_one_reader_for_all(kind, tmp_path):
    """Pipelines, thumbnails of a report, predict's drawings and resized copies show the same photo."""
    source = tmp_path / 'source'
    source.mkdir()
    path = source / ('photo.jpg' if kind == 'XMP' else 'photo.png')
    path.write_bytes(SAME[kind])
    expected = LoadImageFromFile()(dict(img_path=str(path)))['img'][..., ::-1]
    corners = expected[2, 2], expected[-3, -3]
    resize_dataset(source, tmp_path / 'target', 32)
    drawn = draw(dict(image=str(path), unknown=False, predictions=[]))
    views = dict(
        thumbnail=_thumbnail(str(path)),
        rgb=read_rgb(path),
        drawing=drawn.crop((0, 0, 320, 160)),
        resized=Image.open(tmp_path / 'target' / path.name).convert('RGB'),
    )
    assert views['thumbnail'].width == TILE
    for name, view in views.items():
        actual = np.asarray(view)
        np.testing.assert_allclose((actual[2, 2], actual[-3, -3]), corners, atol=3, err_msg=name)


def test_resizing_goes_on_past_photos_that_pillow_stumbles_over(run_tool, tmp_path):
    """Named and counted, whatever Pillow raises of them."""
    source = tmp_path / 'source'
    source.mkdir()
    good = encoded(SIDES.resize((128, 96)), 'PNG')
    (source / 'good.png').write_bytes(good)
    (source / 'note.png').write_bytes(good[:33] + chunk(b'eXIf', b'no EXIF') + good[33:])
    (source / 'name.png').write_bytes(good[:33] + chunk(b'\1\2\3\4', b'') + good[33:])
    place = good.index(b'IDAT')
    (source / 'lost.png').write_bytes(good[:place] + b'\0' + good[place + 1 :])
    (source / 'short.png').write_bytes(good[:33] + chunk(b'tRNS', b'x') + good[33:])
    (source / 'range.tif').write_bytes(encoded(Image.fromarray(np.ones((64, 64), np.float32)), 'TIFF'))
    code, printed = run_tool('resize_dataset', source, tmp_path / 'target', '--short-edge', 48, '--processes', 1)
    assert code == 0 and '3 resized' in printed and '3 not readable, left out' in printed, printed
    for name in ('lost.png', 'short.png', 'range.tif'):
        assert f'skipped {name}: ' in printed
