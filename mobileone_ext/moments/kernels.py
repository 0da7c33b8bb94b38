"""The compiled kernels of kernels.cpp: built at first use, checked, called; or why there are none.

They take float32 and float64 maps on a CPU, contiguous and channels-last ones. Where they
cannot be built, or are not wanted (``MOBILEONE_KERNELS=0``), torch's operators do the
same, slower; a line in the log says so. A build takes a compiler ($CXX, else c++, g++ or
clang++) some seconds and stays in the user's cache for this processor.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..text import one_line

PLANE_SUMS = 42
STRIDED_SUMS = 56
STEM_TAPS = 32

SOURCE = Path(__file__).with_suffix('.cpp')
FLAGS = ('-O3', '-std=c++17', '-shared', '-fPIC')
# Of which the first that the compiler knows count. OpenMP's threads are torch's own; without it there is one.
_IF_KNOWN = [
    [*target, *openmp] for openmp in (['-fopenmp'], []) for target in (['-march=native'], ['-mcpu=native'], [])
]
_TYPES = {torch.float32: 'float32', torch.float64: 'float64'}
_BUILD_SECONDS = 120

# Who hears that they run, or why not: a message and its level. Replaced by what writes a run's log.
report: Callable[[str, int], None] = lambda message, level: logging.getLogger(__name__).log(level, message)  # noqa: E731


def constant_when_compiled(function: Callable) -> Callable:
    """``torch.compiler.assume_constant_result``, which imports the compiler: two seconds for who compiles nothing."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def usable(*maps: Tensor, any_layout: bool = False) -> bool:
    """Whether the kernels can be had, and take these maps: of one type, on a CPU, contiguous or channels-last."""
    if torch.compiler.is_compiling():  # which cannot see into them
        return False
    dtype = maps[0].dtype
    for x in maps:
        if x.device.type != 'cpu' or x.dtype != dtype or dtype not in _TYPES or not x.numel():
            return False
        if not (any_layout or x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
            return False
    return library() is not None


def status() -> str:
    """Which of both runs, in words; builds nothing."""
    if library.cache_info().currsize:
        return 'compiled kernels' if library() else f"torch's operators ({_reason[-1]})"
    return "compiled kernels where they can be built, else torch's operators"


def plane_sums(x: Tensor, shift: Tensor) -> Tensor:
    """Sums (C, 42) in float64 over the 3x3 patches of x (N, C, H, W) at stride 1; kernels.cpp has their order."""
    out = torch.empty(x.shape[1], PLANE_SUMS, dtype=torch.float64)
    _call('plane_sums', [x], in_order(shift, x), out)
    return out


def plane_grad(dx: Tensor, x: Tensor, weights: Tensor) -> None:
    """Add the adjoint of ``plane_sums`` to dx; weights (50, C)."""
    _call('plane_grad', [x, dx], in_order(weights, x))


def strided_sums(x: Tensor, shift: Tensor) -> Tensor:
    """Sums (C, 56) in float64 over the 3x3 patches of x (N, C, H, W) at stride 2."""
    out = torch.empty(x.shape[1], STRIDED_SUMS, dtype=torch.float64)
    _call('strided_sums', [x], in_order(shift, x), out)
    return out


def strided_grad(dx: Tensor, x: Tensor, slope: Tensor, offset: Tensor) -> None:
    """Add slope (9, 9, C) @ patch + offset (9, C) to dx where the patch lies, at stride 2."""
    _call('strided_grad', [x, dx], in_order(slope, x), in_order(offset, x))


def stem_sums(x: Tensor, shift: Tensor) -> Tensor:
    """Sums (32, 32) in float64 over dense 3x3 patches at stride 2 of x (N, C, H, W), C < 4, in any layout."""
    out = torch.empty(STEM_TAPS, STEM_TAPS, dtype=torch.float64)
    _call('stem_sums', [x], in_order(shift, x), out)
    return out


def doubles(values: Sequence[float]) -> ctypes.Array:
    return (ctypes.c_double * len(values))(*values)


def pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*[None if each is None else each.data_ptr() for each in tensors])


def sizes(values: Sequence[int]) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)


def run(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """A function of the library for values of this type; tensors lie in memory as their shape says."""
    values = [value.data_ptr() if isinstance(value, Tensor) else value for value in arguments]
    _function(name, dtype, len(values))(*values)


@cache
def _function(name: str, dtype: torch.dtype, arguments: int) -> Callable:
    function = getattr(library(), f'{name}_{_TYPES[dtype]}')
    function.restype = None
    # Addresses, and integers of 64 bits, which are passed in the same way.
    function.argtypes = [ctypes.c_void_p] * arguments
    return function


def in_order(values: Tensor, x: Tensor) -> Tensor:
    return values if values.dtype == x.dtype and values.is_contiguous() else values.to(x.dtype).contiguous()


def _call(name: str, maps: Sequence[Tensor], *arguments: Tensor) -> None:
    """Every map with its steps, their size, the arguments and the number of threads."""
    # The tensors are the caller's locals, so they live until this returns; ctypes lets other threads run meanwhile.
    steps = [value for x in maps for value in (x, sizes(x.stride()))]
    run(name, maps[0].dtype, *steps, *maps[0].shape, *arguments, torch.get_num_threads())


_reason: list[str] = []


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, built if need be, once a process; None if there is no way to them, and why is reported."""
    _reason.clear()
    try:
        if os.environ.get('MOBILEONE_KERNELS', '1') == '0':
            raise OSError('MOBILEONE_KERNELS=0')
        library = _load()
    except (OSError, subprocess.SubprocessError) as error:
        _reason.append(one_line(error)[:300])
        report(f"training statistics: by torch's operators, which are slower: {_reason[-1]}", logging.WARNING)
        return None
    report('training statistics: by compiled kernels', logging.INFO)
    return library


def _load() -> ctypes.CDLL:
    compiler, folder = _compiler(), cache_folder()
    path = folder / f'kernels-{_key(compiler)}.so'
    with suppress(OSError):  # none yet, or damaged
        return ctypes.CDLL(str(path))
    with suppress(OSError):  # no cache can be written
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return ctypes.CDLL(str(_build(compiler, path)))
    with tempfile.TemporaryDirectory() as own:  # a copy for this process alone
        return ctypes.CDLL(str(_build(compiler, Path(own) / path.name)))


def _build(compiler: list[str], path: Path) -> Path:
    """Compile to ``path``: whole or not at all, so that processes that build at once don't meet."""
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix='.build-', suffix='.so')
    os.close(descriptor)
    try:
        for flags in _IF_KNOWN:
            command = [*compiler, *FLAGS, *flags, '-o', part, str(SOURCE)]
            result = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS)
            if result.returncode == 0:
                os.replace(part, path)
                return path
        raise subprocess.SubprocessError(f'{" ".join(compiler)} failed: {result.stderr.strip()[:200]}')
    finally:
        Path(part).unlink(missing_ok=True)


def _compiler() -> list[str]:
    named = os.environ.get('CXX')
    for command in [named] if named else ['c++', 'g++', 'clang++']:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    raise OSError(f'no C++ compiler ({named or "c++, g++, clang++"})')


def _key(compiler: list[str]) -> str:
    """Stands for all that decides what a build holds: source, compiler and processor."""
    version = subprocess.run([*compiler, '--version'], capture_output=True, timeout=_BUILD_SECONDS).stdout
    parts = [SOURCE.read_bytes(), repr((compiler, FLAGS)).encode(), version, _processor().encode()]
    return hashlib.sha256(b'\0'.join(parts)).hexdigest()[:32]


def _processor() -> str:
    """What tells one kind of processor from another, that can run other instructions."""
    words = [sys.platform, platform.machine(), platform.processor()]
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        return ' '.join(words)
    keys = ('vendor_id', 'cpu family', 'model', 'model name', 'flags', 'Features', 'CPU implementer', 'CPU part')
    facts = {line.split(':')[0].strip(): line for line in reversed(lines)}
    return '\n'.join([*words, *(facts[name] for name in keys if name in facts)])


def cache_folder() -> Path:
    """Of this user, for what is made once and kept."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mobileone_ext'
