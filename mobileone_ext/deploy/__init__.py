"""From a trained network to a device: fusing, the proof, costs, exported files, int8."""

import argparse

# Of exported files, where nothing else is asked for: pixels, and the ONNX operator set.
DEFAULT_SIZE, DEFAULT_OPSET = 224, 17


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every exported file has: ``--opset``, ``--size``, ``--normalize`` and ``--softmax``."""
    parser.add_argument('--opset', type=int, default=DEFAULT_OPSET, help='of the ONNX file, 10 .. 21 (%(default)s)')
    parser.add_argument(
        '--size', type=int, default=DEFAULT_SIZE, help='height and width of the images in pixels (%(default)s)'
    )
    parser.add_argument('--normalize', action='store_true', help='take pixels 0..255: normalization inside the file')
    parser.add_argument('--softmax', action='store_true', help='return probabilities instead of logits')
