"""Files that are either whole or not there."""

import contextlib
import csv
import difflib
import errno
import io
import json
import os
import re
import shutil
import socket
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .text import abbreviate

# Names of what is being written: .NAME.HOST.PROCESS.part
_UNFINISHED = re.compile(r'\..+\.(?P<host>[^.]+)\.(?P<process>\d+)\.part')
_HOST = re.sub(r'[^A-Za-z0-9-]', '-', socket.gethostname())[:40] or 'host'
_DAY = 24 * 3600  # after which nothing of another machine is being written any more
_LONGEST = 120  # characters of a file's name in that of its unfinished form
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_COMPLETE = 'complete'  # in a folder of files that belong together: their names, when all of them are whole
_tidied: set[Path] = set()

HOW_TO_GO_ON = 'what was saved is whole, and a run of tools/train.py goes on with --resume'
TRACEBACK_VARIABLE = 'MOBILEONE_TRACEBACK'
DATA_SUFFIXES = ('.yaml', '.yml', '.json')  # of configs that are data
CONFIG_SUFFIXES = ('.py', *DATA_SUFFIXES)


def home() -> Path:
    """The folder of ``configs`` and ``tools``: ``.mim`` of an installed package, or else the checkout."""
    package = Path(__file__).resolve().parent
    return package / '.mim' if (package / '.mim').is_dir() else package.parent


def in_work_dirs(name: str) -> Path:
    """Where a tool writes ``name`` if it is not told: in the folder of runs, which is made."""
    folder = Path('work_dirs')
    folder.mkdir(exist_ok=True)
    return folder / name


def suffix_of(path: str | Path) -> str:
    """What tells the format of a file, as the tables of formats have it: ``.onnx`` of ``BIG.ONNX`` as well."""
    return Path(path).suffix.lower()


def installed(path: str) -> str:
    """``path``, or where no such file is, the one of that name in :func:`home`: ``configs/...`` works anywhere."""
    return str(home() / path) if not os.path.exists(path) and (home() / path).is_file() else path


def near(path: str | Path) -> str:
    """What to say of a ``path`` where nothing is: the names most like it in the last of its folders that is there, or
    else what that holds; empty where that is the folder that the user is in, or no folder."""
    path = Path(path)
    missing = next((part for part in (*reversed(path.parents), path) if not part.exists()), path)
    folder, names = missing.parent, []
    with contextlib.suppress(OSError):
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith('.'))
    close = difflib.get_close_matches(missing.name, names, 3)
    if close:
        return f'; did you mean {" or ".join(str(folder / name) for name in close)}?'
    return f'; {folder} holds {abbreviate(names, 8)}' if names and folder != Path() else ''


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it on success, remove it on failure.

    What killed processes left in the folder goes.

    Raises:
        OSError: if ``path`` is a folder or cannot be written; it names ``path`` where the disk is full.
    """
    path = Path(path)
    check_writable(path)
    part = _unfinished(path)
    try:
        with naming(path):
            yield part
            _to_disk(part)
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def temporary_folder(beside: str | Path) -> Iterator[Path]:
    """A folder in the folder of ``beside`` for files on their way there, removed in the end.

    Raises:
        OSError: naming ``beside`` where the disk is full.
    """
    folder = _unfinished(Path(beside))
    try:
        with naming(beside):
            folder.mkdir()
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def staging_folder(out: Path, companions: Sequence[str] = ()) -> Iterator[Path]:
    """A :func:`temporary_folder`; what stands in it by the names ``out`` and ``companions`` then takes its place.

    All of it, or nothing: after an error the older files are as they were. Files that belong together cannot change
    at one instant. A process that is killed between two of them has left the rest here, marked as complete, and the
    next one that writes in this folder finishes the work.
    """
    with temporary_folder(out) as folder:
        yield folder
        names = [*(name for name in companions if (folder / name).exists()), out.name]
        for name in names:
            if (folder / name).is_file():
                _to_disk(folder / name)
        write_text('\n'.join(names), folder / _COMPLETE)
        _move_into_place(folder)


def _move_into_place(folder: Path) -> None:
    for name in (folder / _COMPLETE).read_text(encoding='utf-8').split('\n'):
        if (folder / name).exists():
            target = folder.parent / name
            if target.is_dir():  # no folder can be replaced
                os.replace(target, folder / f'{name}.older')
            os.replace(folder / name, target)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Turn what a library raises where the disk is full into an OSError that names ``path`` and what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = _full_disk(error)
        if reason is None:
            raise
        raise OSError(
            f'{path}: cannot be written: {reason}. What stood there is as it was; make room and run it again, '
            'a training with --resume'
        ) from error


def _full_disk(error: Exception) -> str | None:
    """What a library says of a disk that takes no more; None for any other error."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in _FULL else None
    # torch.save and safetensors raise errors of their own.
    causes = r'PytorchStreamWriter failed|file write failed|unexpected pos|No space left|File too large|Disk quota'
    named = re.search(causes, str(error))
    return f'the disk takes no more ({named[0]})' if named else None


def check_room(folder: Path, size: int) -> None:
    """Raise OSError if a file of ``size`` bytes cannot be written in ``folder``, whatever a library said of its own."""
    block = bytes(min(size, 1 << 20))
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(-(-size // len(block))):
            file.write(block)


def _unfinished(path: Path) -> Path:
    _tidy(path.parent)
    name = path.name
    if len(name.encode('utf-8', 'surrogateescape')) > _LONGEST:
        name = f'{zlib.crc32(os.fsencode(name)):08x}{path.suffix[:20]}'
    # The suffix stays last but one: some writers look at it.
    return path.with_name(f'.{name}.{_HOST}.{os.getpid()}.part')


def _tidy(folder: Path) -> None:
    """Remove what processes that are gone left half-written in ``folder``; once a process."""
    folder = folder.resolve()
    if folder in _tidied or not folder.is_dir():
        return
    _tidied.add(folder)
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            match = _UNFINISHED.fullmatch(entry.name)
            if match and _is_left_over(match['host'], int(match['process']), entry):
                if entry.is_dir(follow_symlinks=False):
                    if Path(entry.path, _COMPLETE).is_file():
                        _move_into_place(Path(entry.path))
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    Path(entry.path).unlink(missing_ok=True)


def _is_left_over(host: str, process: int, entry: os.DirEntry) -> bool:
    if host != _HOST:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _to_disk(path: Path) -> None:
    """Wait until the system has written ``path``: a crash of the machine must not leave an empty file in place."""
    with open(path, 'rb') as file:
        os.fsync(file.fileno())


def check_distinct(out: str | Path, *sources: str | Path | None) -> None:
    """Raise ValueError if writing ``out`` would replace one of ``sources``: the same file, also through links."""
    for source in sources:
        if source is None or not os.path.exists(source):
            continue
        same = os.path.exists(out) and os.path.samefile(out, source)
        if same or os.path.realpath(out) == os.path.realpath(source):
            raise ValueError(f'{out}: is what is read ({source}); name another file to write')


def check_outputs(outputs: Iterable[str | Path | None], *sources: str | Path | None) -> None:
    """Raise ValueError or OSError before the work: for a file that cannot be written, two that are one, or one of
    ``sources``; None is no file."""
    paths = [Path(path) for path in outputs if path]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f'{", ".join(map(str, paths))}: each file needs a name of its own')
    for path in paths:
        check_writable(path)
        check_distinct(path, *sources)


def check_writable(path: str | Path) -> None:
    """Raise OSError if a file cannot be written at ``path``: before an hour's work, not after it."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f'{path}: is a folder; name a file to write')
    if not path.parent.is_dir():
        raise FileNotFoundError(f'{path.parent}: no such folder to write {path.name} in')
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f'{path.parent}: no permission to write {path.name} there')


def write_text(text: str, path: str | Path) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    with write_atomically(path) as part:
        part.write_text(text, encoding='utf-8')


def json_text(value: object) -> str:
    """``value`` as JSON; ValueError for NaN or infinities, which that has none of."""
    return json.dumps(value, indent=2, allow_nan=False) + '\n'


def write_json(value: object, path: str | Path) -> None:
    """Write ``value`` to ``path`` as JSON, whole or not at all; errors as in :func:`json_text`."""
    write_text(json_text(value), path)


def csv_text(rows: Iterable[dict], columns: Sequence[str]) -> str:
    """A CSV file: a line of ``columns``, then one for each of ``rows``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
