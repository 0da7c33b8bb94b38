"""From a trained network to a device: fusing, the proof, costs, exported files, int8."""

import argparse
import re
from collections.abc import Sequence

from ..cli import whole
from .formats import OUTPUT_NAME

# Of exported files, where nothing else is asked for: pixels, and the ONNX operator set.
DEFAULT_SIZE, DEFAULT_OPSET = 224, 17
FIRST_OPSET, LAST_OPSET = 10, 21  # from what vendors' compilers ask for to what the exporter writes


def add_file_arguments(parser: argparse.ArgumentParser, first_opset: int = FIRST_OPSET) -> None:
    """Add what every exported file has: ``--opset``, ``--image-size``, ``--normalize`` and ``--softmax``."""
    parser.add_argument(
        '--opset',
        type=whole(first_opset, LAST_OPSET),
        default=DEFAULT_OPSET,
        metavar='N',
        help=f'of the ONNX file, {first_opset} .. {LAST_OPSET} (%(default)s)',
    )
    parser.add_argument(
        '--image-size',
        '--size',
        dest='size',
        type=image_size,
        metavar='N|HxW',
        help="height and width of the images in pixels, one number for both (the test pipeline's)",
    )
    parser.add_argument(
        '--normalize', '--normalise', action='store_true', help='take pixels 0..255: normalization inside the file'
    )
    parser.add_argument('--softmax', action='store_true', help='return probabilities instead of logits')


def image_size(text: str) -> int | tuple[int, int]:
    """The type of an option that is a size in pixels: of a square, or height and width."""
    if not re.fullmatch(r'0*[1-9]\d*(x0*[1-9]\d*)?', text, re.A):
        raise argparse.ArgumentTypeError(f'{text!r}: 224, or height and width as 192x256')
    height, _, width = text.partition('x')
    return (int(height), int(width)) if width else int(height)


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width in pixels, of a size that may be one number for both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def input_name(text: str) -> str:
    """The type of an option that names a graph's input."""
    if not re.fullmatch(r'[A-Za-z_][\w.:/-]*', text) or text == OUTPUT_NAME:
        raise argparse.ArgumentTypeError(f'{text!r}: a letter, then letters, digits and _.:/- ; not {OUTPUT_NAME!r}')
    return text
