"""What every tool shares: the config it reads, and how it reports a user's mistake."""

import argparse
import contextlib
import errno
import getpass
import logging
import math
import os
import re
import shlex
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from .files import HOW_TO_GO_ON, TRACEBACK_VARIABLE
from .provenance import rank
from .text import hint, one_line, printable

# A mistake that all processes meet is told by the first, and its launcher ends the others meanwhile.
_SECONDS_FOR_THE_FIRST = 10
# What gloo says in a process that the others wait for in vain; whoever ended has more to say, or the launcher has.
_LOST = re.compile(r'gloo/transport/.*(by peer|closed)')
LAUNCHER = 'MOBILEONE_LAUNCHER'  # the process that starts anew what has ended (``engine/launch.py``), until a SIGHUP
_OURS = {'mobileone_ext', 'benchmarks', 'research', 'tests'}  # whose imports fail by a fault of ours


def run(main: Callable[[], int | None]) -> None:
    """Run a tool's ``main`` and exit with its code; a user's mistake becomes one line and exit code 1.

    ValueError and OSError are mistakes of the user: a bad value, a missing or
    unreadable file. What a library raises over a user's file becomes one of them where the file is read.
    What the machine lacks is a line as well; everything else is a fault of ours and keeps its traceback.
    ``MOBILEONE_TRACEBACK=1`` shows where an error came from. Ctrl-C is one line and exit code 130.
    Of several processes of a run the first one speaks for all.

    Whatever is set in the process for a tool's sake is set here; importing the package changes nothing.
    """
    prepare_process()
    try:
        with contextlib.ExitStack() as stack:
            if rank():
                nowhere = stack.enter_context(open(os.devnull, 'w', encoding='utf-8'))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            sys.exit(main() or 0)
    except KeyboardInterrupt as stop:
        if rank() == 0:
            print(f'interrupted; {str(stop) or HOW_TO_GO_ON}', file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        outside = outside_cause(error)
        message = outside or (one_line(error) if isinstance(error, (ValueError, OSError)) else None)
        if message is None or os.environ.get(TRACEBACK_VARIABLE):
            raise
        if rank() or _LOST.search(str(error)):
            time.sleep(_SECONDS_FOR_THE_FIRST)
        if rank():
            message = f'process {rank()}: {message}'
        print(f'error: {printable(message)}', file=sys.stderr)
        if outside is None and os.environ.get(LAUNCHER) == str(os.getppid()):
            os.kill(os.getppid(), signal.SIGHUP)  # another attempt would meet the same mistake
        sys.exit(1)


def outside_cause(error: Exception) -> str | None:
    """A line for what the machine did to a run, None for any other error."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and not error.filename:
        return f'{error.strerror}: nothing more can be written; make room; {HOW_TO_GO_ON}'
    if isinstance(error, ImportError) and error.name and error.name.partition('.')[0] not in _OURS:
        if not isinstance(error, ModuleNotFoundError):
            return f'{error.name} is installed and cannot be imported: {one_line(error)}'
        return (
            f"{one_line(error)}: the package is not installed; pip install 'mobileone_ext[EXTRA]' brings optional "
            'ones, EXTRA being benchmark, coreml, demo, deploy, executorch, gpu, heic, hub, litert, mnn or ncnn'
        )
    if _LOST.search(text):
        return f'another process of the run has ended; {HOW_TO_GO_ON}'
    if isinstance(error, MemoryError):
        return f'the memory does not suffice: {one_line(error)}'
    worker = re.search(r'DataLoader worker \(pid(?:\(s\))? (\d+)', text)
    if worker:
        return (
            f"the data loader's worker {worker[1]} was killed, perhaps for want of memory "
            f'(train_dataloader.num_workers=N takes fewer); {HOW_TO_GO_ON}'
        )
    if type(error).__name__ == 'OutOfMemoryError':
        return f'{text.splitlines()[0]} A smaller batch needs less (train_dataloader.batch_size=N)'
    return None


def prepare_process() -> None:
    """What every tool needs of the process that it runs in, whatever console and user it has."""
    silence_imports()
    logging.raiseExceptions = False  # a log on a full disk is not worth a traceback a line
    for stream in (sys.stdout, sys.stderr):  # names of classes and files that a console's encoding doesn't have
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')
    give_home()


def give_home() -> None:
    """Give a user without home or name, as in a container, a folder and a name: libraries ask for both."""
    home = os.environ.get('HOME', os.path.expanduser('~'))
    if not os.path.isabs(home):
        os.environ['HOME'] = _folder_of_user()
    elif not os.access(home, os.W_OK) and 'MPLCONFIGDIR' not in os.environ:
        os.environ['MPLCONFIGDIR'] = _folder_of_user()  # matplotlib takes another one each time, and says so
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ['LOGNAME'] = str(os.getuid())


def _folder_of_user() -> str:
    """A folder for temporary files that nobody else has, the same one each time for what is cached there."""
    folder = Path(tempfile.gettempdir(), f'mobileone_{os.getuid()}')
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not folder.is_dir() or folder.is_symlink() or folder.stat().st_uid != os.getuid():
        folder = Path(tempfile.mkdtemp())
    return str(folder)


def silence_imports() -> None:
    """Drop the warnings that say nothing to a user of these tools."""
    # MobileOne needs none of mmcv's compiled operators, whose absence mmpretrain mentions at every start.
    warnings.filterwarnings('ignore', message='Fail to import')
    # Configs are written for eight GPUs; fewer cores or no GPU is no fault.
    warnings.filterwarnings('ignore', message='This DataLoader will create')
    warnings.filterwarnings('ignore', message="'pin_memory' argument is set as true")
    # As many threads as mmengine gives to one of several processes, unless the user does.
    warnings.filterwarnings('ignore', message='Setting (OMP|MKL)_NUM_THREADS')
    warnings.filterwarnings('ignore', category=DeprecationWarning)
    warnings.filterwarnings('ignore', category=FutureWarning)
    # A CUDA toolkit without a GPU, found while mmengine lists the environment.
    logging.getLogger('torch.utils.cpp_extension').setLevel(logging.ERROR)


def say_written(*paths: str | Path | None) -> None:
    """Tell which files and folders a tool has written; None is none."""
    for path in filter(None, paths):
        print(f'{printable(path)}: written')


def tool_command(tool: str, *arguments: object) -> str:
    """The line for a shell that calls ``tool`` from any folder: by ``mobileone``, where this process was called so."""
    start = ['python', '-m', 'mobileone_ext'] if sys.argv[0].endswith('.py') else ['mobileone']
    return shlex.join(map(str, [*start, tool, *arguments]))


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, as all mistakes are; the description stays as it is written."""

    def __init__(self, *args, formatter_class=argparse.RawDescriptionHelpFormatter, **options):
        super().__init__(*args, formatter_class=formatter_class, **options)

    def error(self, message: str):
        unknown = re.match(r'unrecognized arguments: (--[\w-]+)', message)
        more = hint(unknown[1], self._option_string_actions) if unknown else '; --help lists the options'
        raise ValueError(message + more)


def whole(low: int, high: float = math.inf) -> Callable[[str], int]:
    """The type of an option that is a whole number from ``low`` to ``high``."""

    def read(text: str) -> int:
        if not re.fullmatch(r'\s*-?\d+\s*', text, re.A) or not low <= int(text) <= high:
            upto = 'on' if high == math.inf else f'to {high}'
            raise argparse.ArgumentTypeError(f'{text!r}: a whole number from {low} {upto} is needed')
        return int(text)

    return read


count, positive = whole(0), whole(1)


def positive_number(text: str) -> float:
    """The type of an option that is a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'{text!r}: a number above 0 is needed')
    return value


def folder(text: str) -> str:
    """The type of an option that names a folder to write into, there or not."""
    if Path(text).is_file():
        raise argparse.ArgumentTypeError(f'{text!r}: is a file; a folder is needed')
    return text


def fraction(text: str) -> float:
    """The type of an option that is a number from 0 to 1."""
    value = 0.0 if text.strip() in ('0', '0.0') else positive_number(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f'{text!r}: a number from 0 to 1 is needed')
    return value


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the positional CONFIG and ``--cfg-options``."""
    parser.add_argument('config', help='a config file, e.g. configs/mobileone_s0_8xb32.py')
    add_cfg_options(parser)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options k=v ...``: a dict of texts, to which ``load_config`` gives a meaning."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_KeysAndValues,
        default={},
        metavar='K=V',
        help='override values of the config, e.g. train_dataloader.batch_size=64; V is a number, true, false, None, '
        "a list ([a,b] or 1,2), a tuple ((1,2)), a dict ({'type': 'SGD'}) or else text, as it is written",
    )


class _KeysAndValues(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        options = dict(getattr(namespace, self.dest))
        for text in values:
            key, sign, options[key] = text.partition('=')
            if not (key and sign):
                raise argparse.ArgumentError(self, f'{text!r}: is not KEY=VALUE')
        setattr(namespace, self.dest, options)


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the positionals [CONFIG] NETWORK, ``--cfg-options``, ``--ema`` and ``--trust-checkpoint``.

    ``parse_intermixed_args`` reads them, whatever options stand between, and
    :func:`mobileone_ext.deploy.described.named_network` what they name.
    """
    parser.add_argument(
        'config', nargs='?', help="a config file, or a run's folder, for a network that does not say how it is used"
    )
    add_cfg_options(parser)
    parser.add_argument(
        'network',
        help="a run's folder, a checkpoint of any layout (ours, mmpretrain, Apple, timm), branched or fused, or "
        'published weights by name: convert_checkpoint --list shows these and their licenses',
    )
    add_weights_arguments(parser)


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--ema`` and ``--trust-checkpoint``: how to read a checkpoint."""
    parser.add_argument(
        '--ema',
        choices=['auto', 'on', 'off'],
        default='auto',
        help='which weights of a training checkpoint: the averaged ones if there are (auto), always or never',
    )
    parser.add_argument(
        '--trust-checkpoint', action='store_true', help='unpickle a file that holds code: it may do anything'
    )


def add_input_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--input``: what goes into an exported file that does not say so."""
    parser.add_argument(
        '--input',
        choices=['normalized', 'pixels'],
        help='what an exported file takes that does not say so: normalized images, or pixels 0..255',
    )


def add_images_arguments(
    parser: argparse.ArgumentParser, purpose: str, count: int = 1300, older: tuple[str, str] | None = None, **options
) -> None:
    """Add ``--images DIR`` and ``--num-images N``; ``older`` names of the two, ``options`` of the first."""
    folder, number = older or (None, None)
    parser.add_argument(*filter(None, ['--images', folder]), dest='images', metavar='DIR', help=purpose, **options)
    parser.add_argument(
        *filter(None, ['--num-images', number]),
        dest='num_images',
        type=positive,
        default=count,
        metavar='N',
        help=f'how many of them at most, spread evenly ({count})',
    )


def add_evaluate_argument(parser: argparse.ArgumentParser, default: bool, purpose: str, *older: str) -> None:
    """Add ``--evaluate`` and ``--no-evaluate``; ``older`` are other names of the latter."""
    parser.add_argument('--evaluate', action=argparse.BooleanOptionalAction, default=default, help=purpose)
    for name in older:
        parser.add_argument(name, dest='evaluate', action='store_false', help=argparse.SUPPRESS)


def add_launcher_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher``, and accept the ``--local-rank`` that some launchers pass."""
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def load_config(path: str, options: dict | None = None):
    """See :func:`mobileone_ext.config.load_config`, which is imported when it is needed: ``--help`` is not."""
    from . import config

    return config.load_config(path, options)
