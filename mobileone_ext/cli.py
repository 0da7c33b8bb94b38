"""What every tool shares: the config it reads, and how it reports a user's mistake."""

import argparse
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

TRACEBACK_VARIABLE = 'MOBILEONE_TRACEBACK'


def home() -> Path:
    """The folder of ``configs`` and ``tools``: ``.mim`` of an installed package, or else the checkout."""
    package = Path(__file__).resolve().parent
    return package / '.mim' if (package / '.mim').is_dir() else package.parent


def installed(path: str) -> str:
    """``path``, or where no such file is, the one of that name in :func:`home`: ``configs/...`` works anywhere."""
    return str(home() / path) if not os.path.exists(path) and (home() / path).is_file() else path


def run(main: Callable[[], int | None]) -> None:
    """Run a tool's ``main`` and exit with its code; a user's mistake becomes one line and exit code 1.

    ValueError and OSError are mistakes of the user: a bad value, a missing or
    unreadable file. ``MOBILEONE_TRACEBACK=1`` shows where they came from.
    """
    silence_imports()
    try:
        sys.exit(main() or 0)
    except (ValueError, OSError) as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        print(f'error: {one_line(error)}', file=sys.stderr)
        sys.exit(1)


def one_line(error: Exception) -> str:
    """The message of ``error``; where a loader's worker wrapped it in a traceback, the innermost one."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if 'Traceback' not in str(error):
        return ' '.join(line.strip() for line in lines)
    return lines[-1].split('Error: ', 1)[-1]


def silence_imports() -> None:
    """Drop the warnings that say nothing to a user of these tools."""
    # MobileOne needs none of mmcv's compiled operators, whose absence mmpretrain mentions at every start.
    warnings.filterwarnings('ignore', message='Fail to import')
    # Configs are written for eight GPUs; fewer cores or no GPU is no fault.
    warnings.filterwarnings('ignore', message='This DataLoader will create')
    warnings.filterwarnings('ignore', message="'pin_memory' argument is set as true")
    warnings.filterwarnings('ignore', category=DeprecationWarning)
    warnings.filterwarnings('ignore', category=FutureWarning)
    # A CUDA toolkit without a GPU, found while mmengine lists the environment.
    logging.getLogger('torch.utils.cpp_extension').setLevel(logging.ERROR)


def count(text: str) -> int:
    """The type of an option that is 0, 1, 2 ..."""
    return _at_least(0, text)


def positive(text: str) -> int:
    """The type of an option that is 1, 2, 3 ..."""
    return _at_least(1, text)


def _at_least(smallest: int, text: str) -> int:
    if not text.strip().isdecimal() or int(text) < smallest:
        raise argparse.ArgumentTypeError(f'{text!r}: a whole number from {smallest} on is needed')
    return int(text)


def positive_number(text: str) -> float:
    """The type of an option that is a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'{text!r}: a number above 0 is needed')
    return value


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the positional CONFIG and ``--cfg-options k=v ...``."""
    from mmengine.config import DictAction

    parser.add_argument('config', help='a config file, e.g. configs/mobileone_s0_8xb32.py')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='K=V',
        help='override values of the config, e.g. train_dataloader.batch_size=64',
    )


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the positional CHECKPOINT, ``--ema`` and ``--trust-checkpoint``."""
    parser.add_argument('checkpoint', help='weights of any layout (ours, mmpretrain, Apple, timm), branched or fused')
    add_weights_arguments(parser)


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--ema`` and ``--trust-checkpoint``: how to read a checkpoint."""
    parser.add_argument(
        '--ema',
        choices=['auto', 'on', 'off'],
        default='auto',
        help='which weights of a training checkpoint: the averaged ones if there are (auto), or else',
    )
    parser.add_argument(
        '--trust-checkpoint', action='store_true', help='unpickle a file that holds code: it may do anything'
    )


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every exported file has: ``--opset``, ``--size``, ``--normalize`` and ``--softmax``."""
    from .deploy import DEFAULT_OPSET, DEFAULT_SIZE

    parser.add_argument('--opset', type=int, default=DEFAULT_OPSET, help='of the ONNX file, 13 .. 21 (%(default)s)')
    parser.add_argument(
        '--size', type=int, default=DEFAULT_SIZE, help='height and width of the images in pixels (%(default)s)'
    )
    parser.add_argument('--normalize', action='store_true', help='take pixels 0..255: normalization inside the file')
    parser.add_argument('--softmax', action='store_true', help='return probabilities instead of logits')


def add_launcher_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher``, and accept the ``--local-rank`` that some launchers pass."""
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def load_config(path: str, options: dict | None = None):
    """See :func:`mobileone_ext.config.load_config`, which is imported when it is needed: ``--help`` is not."""
    from . import config

    return config.load_config(path, options)
