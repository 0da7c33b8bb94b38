"""A photo's bytes as pixels: 8 bits, upright, BGR or gray, or an OSError or ValueError that says why not.

The one reader of photos. JPEGs are decoded by libjpeg-turbo, at a fraction of their size if that
is enough. Pillow decodes the rest: other formats, CMYK, photos that EXIF or XMP says to turn,
files that libjpeg-turbo complains about.
"""

import io
import warnings
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageChops

from .images import register_readers

MAX_PIXELS = 2 * 89_478_485  # 178 million; above it Pillow takes an image for an attack, too
MAX_RATIO = 256  # of the sides: resized by its short one, a longer image fills the memory
GROUND = (124, 117, 104)  # RGB, behind what is transparent: ImageNet's mean color, which mmcv puts behind gray
_REDUCTIONS = (8, 4, 2)  # by which libjpeg-turbo decodes quickly
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG = b'\x89PNG\r\n\x1a\n'
_PNG_PIXELS = (b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND')
_PNG_NOTES = (b'eXIf', b'tEXt', b'zTXt', b'iTXt')
_PNG_DEPTH = 24  # where the bits of a channel stand
_PHOTOMETRIC, _BITS = 262, 258  # tags of TIFF


def check_size(height: int, width: int) -> None:
    """Raise ValueError for an image that no photo is, before memory is taken for it."""
    if height * width > MAX_PIXELS:
        raise ValueError(f'{width} x {height} pixels, more than {MAX_PIXELS / 1e6:.0f} million')
    if not 0 < max(height, width) <= MAX_RATIO * min(height, width):
        raise ValueError(f'{width} x {height} pixels: one side is more than {MAX_RATIO} times the other')


class Jpeg:
    """A JPEG file, still to be decoded; ``shape`` (H, W, 3) is the whole image's."""

    def __init__(self, data: bytes, size: tuple[int, int]):
        self.data, self.shape = data, (*size, 3)

    def decode(self, reduction: int = 1) -> np.ndarray:
        """BGR pixels (ceil(H / reduction), ceil(W / reduction), 3), uint8; of a damaged file perhaps all of them.

        Raises:
            OSError: for a file that is cut off.
        """
        height, width = (-(-side // reduction) for side in self.shape[:2])
        try:
            return simplejpeg.decode_jpeg(self.data, 'BGR', min_height=height, min_width=width, min_factor=reduction)
        except ValueError:  # raised for oddities as well: let Pillow judge
            return decode(self.data)

    def copy(self) -> np.ndarray:
        """The whole image, for those who keep what each step of a pipeline makes (mmpretrain's browse_dataset)."""
        return self.decode()


def reduction(crop: tuple[int, int], size: tuple[int, int]) -> int:
    """The largest of 1, 2, 4, 8 by which a crop (h, w) can shrink and still be no smaller than ``size``."""
    return next((n for n in _REDUCTIONS if crop[0] >= n * size[0] and crop[1] >= n * size[1]), 1)


def open_jpeg(data: bytes) -> Jpeg | None:
    """``data`` as a JPEG file for libjpeg-turbo; None if it has to be decoded otherwise.

    Raises:
        ValueError: for a size that no photo has.
    """
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    check_size(height, width)
    if colors not in ('YCbCr', 'Gray', 'RGB') or _is_turned(data):
        return None
    return Jpeg(data, (height, width))


def read_pixels(data: bytes, short_edge: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Upright BGR pixels of a photo (h, w, 3), of a large JPEG fewer than all, and the whole photo's size (H, W).

    Args:
        short_edge: in pixels, to which the photo will be resized: each side has twice as many or all of its own.

    Raises:
        OSError, ValueError: saying why the photo is not readable.
    """
    jpeg = open_jpeg(data)
    if jpeg is None:
        pixels = decode(data)
        return pixels, pixels.shape[:2]
    size = jpeg.shape[:2]
    # Half the pixels in each direction are left to the better filter.
    return jpeg.decode(reduction(size, (2 * short_edge, 2 * short_edge))), size


def read_rgb(path: str | Path, short_edge: int | None = None) -> Image.Image:
    """The photo at ``path``, upright, 8 bits, RGB; a large one for ``short_edge`` as by :func:`read_pixels`.

    Raises:
        OSError, ValueError: naming the file that cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        pixels = read_pixels(data, short_edge)[0] if short_edge else decode(data)
    except (OSError, ValueError) as error:
        raise ValueError(f'{path}: not a readable image ({error})') from error
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1]))


def decode(data: bytes, gray: bool = False) -> np.ndarray:
    """Upright 8-bit pixels by Pillow, (H, W, 3) BGR or, ``gray``, (H, W); of an animation the first picture.

    ``GROUND`` is behind what is transparent.

    Raises:
        OSError, ValueError: for what is no image, of a size that no photo has, or whose range of values is not known.
    """
    register_readers()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', module=r'PIL\.')
            image = _read(data)
    except Image.UnidentifiedImageError:
        # HEIC is a box, like a film of MPEG-4, and begins with its size and its kind.
        remedy = ' (HEIC: pip install pillow-heif)' if data[4:8] == b'ftyp' else ''
        raise OSError(f'not an image that Pillow reads{remedy}') from None
    except (OSError, ValueError):
        raise
    except Exception as error:  # of a damaged file Pillow raises SyntaxError, struct.error, TypeError and others
        raise OSError(f'{type(error).__name__}: {error}') from error
    return np.array(image.convert('L')) if gray else np.array(image)[:, :, ::-1]


def _read(data: bytes) -> Image.Image:
    """RGB of 8 bits, upright; raises whatever Pillow does."""
    whole, white_is_zero = data, False
    if data.startswith(_PNG):
        data = _png_chunks(data, _PNG_PIXELS)  # what else is damaged is no reason to lose a photo
    else:
        data, white_is_zero = _as_black_is_zero(data)
    image = Image.open(io.BytesIO(data))
    check_size(image.height, image.width)
    image.load()
    if image.format != 'PNG':
        turn = _orientation(image)  # TIFF is upright, as Pillow turns it in loading
    elif any(mark in whole for mark in (b'eXIf', b'Raw profile type exif', b'XML:com.adobe.xmp')):
        turn = _orientation(_png_chunks(whole, _PNG_PIXELS + _PNG_NOTES))
    else:
        turn = 1
    bits = data[_PNG_DEPTH] if image.format == 'PNG' else getattr(image, 'tag_v2', {}).get(_BITS, (16,))[0]
    image = _over_ground(_in_8_bits(image, bits), white_is_zero)
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image


def _orientation(image: bytes | Image.Image) -> int:
    """What EXIF or else XMP says, 1 .. 8; 1 where neither can be read."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', module=r'PIL\.')
            image = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
            return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged notes fail in as many ways as damaged pixels
        return 1


def _is_turned(jpeg: bytes) -> bool:
    """Whether EXIF or XMP says that the image lies on its side or is mirrored."""
    start = 2
    while (marker := jpeg[start : start + 2])[:1] == b'\xff' and marker != b'\xff\xda':  # where the pixels begin
        start += 2 + int.from_bytes(jpeg[start + 2 : start + 4], 'big')
    notes = jpeg[:start]
    return (b'Exif\0' in notes or b'tiff:Orientation' in notes) and _orientation(jpeg) in _TURNS


def _png_chunks(data: bytes, names: tuple[bytes, ...]) -> bytes:
    """A PNG file with the chunks of these ``names`` alone, as they are."""
    kept, start = [_PNG], len(_PNG)
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], 'big')
        if data[start + 4 : start + 8] in names:
            kept.append(data[start:end])
        start = end
    return b''.join(kept)


def _as_black_is_zero(data: bytes) -> tuple[bytes, bool]:
    """A TIFF file in which 0 is white as one in which 0 is black, and whether ``data`` is such a file.

    Pillow reads more kinds of the latter, and does not invert 16 bits.
    """
    order = {b'II': 'little', b'MM': 'big'}.get(data[:2], '')

    def number(start: int, size: int) -> int:
        return int.from_bytes(data[start : start + size], order)

    if not order or number(2, 2) not in (42, 43):
        return data, False
    # Bytes of an offset, a count of tags, a tag, and those of a tag before its value: TIFF, BigTIFF.
    offset, count, tag, before = (4, 2, 12, 8) if number(2, 2) == 42 else (8, 8, 20, 12)
    tags = number(offset, offset)
    for start in range(tags + count, min(tags + count + tag * number(tags, count), len(data)), tag):
        value = start + before
        if number(start, 2) == _PHOTOMETRIC and number(value, 2) == 0:
            return data[:value] + (1).to_bytes(2, order) + data[value + 2 :], True
    return data, False


def _in_8_bits(image: Image.Image, bits: int) -> Image.Image:
    """``image`` with 8 bits a channel: more are scaled, so that 65535 is white; Pillow would cut them off at 255.

    Args:
        bits: of a channel in the file.

    Raises:
        ValueError: for floating point and 32 bits, where nobody knows which value is white.
    """
    clear = image.info.get('transparency')  # the level that is; of a palette the color's number, or alpha of each
    # PNG and PGM have no more than 16 bits, whatever Pillow keeps them in.
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM')):
        values = np.asarray(image)
        levels = Image.fromarray(np.round(values * np.float32(255 / (2**bits - 1))).astype(np.uint8))
        if clear is not None:
            levels.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
        return levels
    if image.mode in ('I', 'F'):
        kind = 'floating point' if image.mode == 'F' else '32-bit or signed integers'
        raise ValueError(f'pixels are {kind}, of which the range is not known; save it with 8 or 16 bits')
    if clear is not None and image.mode in ('L', 'RGB') and bits != 8:  # Pillow keeps the level as in the file
        scaled = [level >> 8 if bits == 16 else level * 255 // (2**bits - 1) for level in np.atleast_1d(clear).tolist()]
        image.info['transparency'] = tuple(scaled) if image.mode == 'RGB' else scaled[0]
    return image


def _over_ground(image: Image.Image, white_is_zero: bool) -> Image.Image:
    """``image`` as RGB, ``GROUND`` showing through where it is transparent."""
    if image.mode in ('La', 'RGBa'):  # colors multiplied with alpha
        image = image.convert(image.mode.upper())
    shown = image.convert('RGBA') if image.has_transparency_data else image
    colors = shown.convert('RGB')
    colors = ImageChops.invert(colors) if white_is_zero else colors
    if shown is not image:
        ground = Image.new('RGB', image.size, GROUND)
        ground.paste(colors, mask=shown.getchannel('A'))
        colors = ground
    return colors
