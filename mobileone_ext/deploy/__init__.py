"""From a trained network to a device: fusing, the proof, costs, exported files, int8."""

import argparse
import re

from ..cli import positive, whole
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
        type=positive,
        metavar='N',
        help="height and width of the images in pixels (the test pipeline's)",
    )
    parser.add_argument('--normalize', action='store_true', help='take pixels 0..255: normalization inside the file')
    parser.add_argument('--softmax', action='store_true', help='return probabilities instead of logits')


def input_name(text: str) -> str:
    """The type of an option that names a graph's input."""
    if not re.fullmatch(r'[A-Za-z_][\w.:/-]*', text) or text == OUTPUT_NAME:
        raise argparse.ArgumentTypeError(f'{text!r}: a letter, then letters, digits and _.:/- ; not {OUTPUT_NAME!r}')
    return text
