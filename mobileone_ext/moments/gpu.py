"""The Triton kernels of triton_kernels.py and triton_dense.py: tried at first use, launched; or why there are none.

They take float16, bfloat16, float32 and float64 maps on a GPU, in any layout, channels-last ones best; under Triton's
interpreter (``TRITON_INTERPRET=1``) also maps on a CPU. Where they cannot be had, or are not wanted
(``MOBILEONE_KERNELS=0``), torch's operators do the same, slower; a line in the log says so.

Functions are those of kernels.py, with the same sums in the same order; ``pixel_sums`` and its adjoint are more.
"""

import logging
import os
from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.library import custom_op

from ..text import one_line
from . import kernels
from .kernels import PLANE_SUMS, STEM_TAPS, STRIDED_SUMS, constant_when_compiled

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
MAX_VALUES = 2**31 - 1  # of a map; offsets within an image are of 32 bits
# Values that a program works on at once, and of them at most along what is next to each other in memory. On sm_80 and
# sm_90 they fit the registers; an interpreter's time goes by programs.
TILE, BLOCK = (256, 64) if not INTERPRETED else (2**15, 2**10)
PROGRAMS = 1024  # that sums are spread over: enough for any GPU, few enough for what they write to be small
PIXEL_CHANNELS = 128  # whose products fit the registers; beyond, cuBLAS multiplies
PIXEL_PROGRAMS = 264  # each of which writes products of its own
PIXEL_BLOCK, STEM_BLOCK = 64, 32  # pixels, patches
HALF = (torch.float16, torch.bfloat16)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def usable(*maps: Tensor) -> bool:
    """Whether the kernels can be had, and take these maps: of one type, on a GPU."""
    x = maps[0]
    if x.device.type != 'cuda' and not (INTERPRETED and x.device.type == 'cpu'):
        return False
    if x.dtype not in _DTYPES or not x.numel():
        return False
    for y in maps:  # no generator, which torch.compile cannot always follow
        if y.dtype != x.dtype or y.device != x.device:
            return False
    if x.numel() > MAX_VALUES:
        _say_too_large()
        return False
    return reason(x.device, x.dtype) is None


def status(device: torch.device) -> str:
    """Which of both runs, in words; compiles nothing."""
    reasons = {why for (place, _), why in _reasons.items() if place == device}
    if None in reasons:
        return 'Triton kernels'
    if reasons:
        return f"torch's operators ({reasons.pop()})"
    return "Triton kernels where they can be had, else torch's operators"


# torch.compile does not look into these: it calls them.
@custom_op('mobileone_ext::plane_sums', mutates_args=())
def plane_sums(x: Tensor, shift: Tensor) -> Tensor:
    """Sums (C, 42) in float64 over the 3x3 patches of x (N, C, H, W) at stride 1; kernels.cpp has their order."""
    return _sums('plane_sums', x, shift, PLANE_SUMS, x.shape[3])


@plane_sums.register_fake
def _(x, shift):
    return x.new_empty(PLANE_SUMS, x.shape[1], dtype=torch.float64).t()


@custom_op('mobileone_ext::strided_sums', mutates_args=())
def strided_sums(x: Tensor, shift: Tensor) -> Tensor:
    """Sums (C, 56) in float64 over the 3x3 patches of x (N, C, H, W) at stride 2."""
    return _sums('strided_sums', x, shift, STRIDED_SUMS, -(-x.shape[3] // 2))


@strided_sums.register_fake
def _(x, shift):
    return x.new_empty(STRIDED_SUMS, x.shape[1], dtype=torch.float64).t()


@custom_op('mobileone_ext::plane_grad', mutates_args=('dx',))
def plane_grad(dx: Tensor, x: Tensor, weights: Tensor) -> None:
    """Add the adjoint of ``plane_sums`` to dx; weights (50, C)."""
    _grad('plane_grad', dx, x, x.shape[3], weights)


@custom_op('mobileone_ext::strided_grad', mutates_args=('dx',))
def strided_grad(dx: Tensor, x: Tensor, slope: Tensor, offset: Tensor) -> None:
    """Add slope (9, 9, C) @ patch + offset (9, C) to dx where the patch lies, at stride 2."""
    _grad('strided_grad', dx, x, -(-x.shape[3] // 2), slope, offset)


@custom_op('mobileone_ext::stem_sums', mutates_args=())
def stem_sums(x: Tensor, shift: Tensor) -> Tensor:
    """Sums (32, 32) in float64 over dense 3x3 patches at stride 2 of x (N, C, H, W), C < 4, in any layout."""
    images, channels, height, width = x.shape
    patches = images * -(-height // 2) * -(-width // 2)
    programs, share = _shares(patches, STEM_BLOCK)
    out = torch.empty(programs, STEM_TAPS, STEM_TAPS, device=x.device)
    sizes = patches, channels, height, width, *x.stride(), share
    with _on(x.device):
        _dense_kernels().stem_sums[(programs,)](x, shift.float(), out, *sizes, _language(out.dtype), STEM_BLOCK)
    return out.sum(0, dtype=torch.float64)


@stem_sums.register_fake
def _(x, shift):
    return x.new_empty(STEM_TAPS, STEM_TAPS, dtype=torch.float64)


def takes_pixels(*maps: Tensor) -> bool:
    """Whether ``pixel_sums`` and ``pixel_grad`` do: of half precision and few channels, in any layout."""
    return usable(*maps) and maps[0].dtype in HALF and maps[0].shape[1] <= PIXEL_CHANNELS


def _channels_last(x: Tensor) -> Tensor:
    """x itself, or a copy of it laid out so. Asked here, out of torch.compile's sight: there strides aren't known."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


@custom_op('mobileone_ext::pixel_sums', mutates_args=())
def pixel_sums(x: Tensor, shift: Tensor) -> Tensor:
    """(C + 1, C) in float64: products of the channels of x (N, C, H, W) less shift, and in the last row its sums."""
    x = _channels_last(x)
    channels, pixels = x.shape[1], x.numel() // x.shape[1]
    programs, share = _shares(pixels, PIXEL_BLOCK, PIXEL_PROGRAMS)
    out = torch.empty(programs, channels + 1, channels, device=x.device)
    sizes = pixels, channels, share, _factor(x), PIXEL_BLOCK, max(_power_of_two(channels), 16)
    with _on(x.device):
        _dense_kernels().pixel_sums[(programs,)](x, shift.float(), out, *sizes, num_warps=8)
    return out.sum(0, dtype=torch.float64)


@pixel_sums.register_fake
def _(x, shift):
    return x.new_empty(x.shape[1] + 1, x.shape[1], dtype=torch.float64)


@custom_op('mobileone_ext::pixel_grad', mutates_args=('dx',))
def pixel_grad(dx: Tensor, x: Tensor, slope: Tensor, offset: Tensor, scale: Tensor) -> None:
    """Add scale * (slope @ pixel + offset) to every pixel of dx; slope (C, C) of the map's type, offset (C,)."""
    channels, pixels = x.shape[1], x.numel() // x.shape[1]
    x, target = _channels_last(x), _channels_last(dx)
    weights = slope.t().contiguous(), offset.float(), scale.float()
    sizes = pixels, channels, _factor(x), PIXEL_BLOCK, max(_power_of_two(channels), 16)
    with _on(x.device):
        _dense_kernels().pixel_grad[(-(-pixels // PIXEL_BLOCK),)](x, target, *weights, *sizes, num_warps=8)
    if target.data_ptr() != dx.data_ptr():
        dx.copy_(target)


def _shares(count: int, block: int, most: int | None = None) -> tuple[int, int]:
    """How many programs, and how much of ``count`` for each: whole blocks."""
    blocks = -(-count // block)
    share = -(-blocks // (most or PROGRAMS))
    return -(-blocks // share), share * block


def _sums(name: str, x: Tensor, shift: Tensor, count: int, columns: int) -> Tensor:
    images, channels, height, width = x.shape
    block_w, block_c = _blocks(x, columns)
    tiles, blocks = -(-columns // block_w), -(-channels // block_c)
    group = max(images * tiles * blocks // PROGRAMS, 1)
    programs = -(-images // group) * tiles
    acc = _accumulator(x.dtype)
    out = torch.empty(programs, count, channels, dtype=acc, device=x.device)
    sizes = images, height, width, channels, *x.stride(), group
    kernel = getattr(_triton_kernels(), name)
    with _on(x.device):
        kernel[programs, blocks](x, shift.to(acc), out, *sizes, _language(acc), block_w, block_c)
    return out.sum(0, dtype=torch.float64).t()


def _grad(name: str, dx: Tensor, x: Tensor, columns: int, *weights: Tensor) -> None:
    images, channels, height, width = x.shape
    block_w, block_c = _blocks(x, columns)
    grid = images * -(-columns // block_w), -(-channels // block_c)
    acc = _accumulator(x.dtype)
    sizes = height, width, channels, *x.stride(), *dx.stride()
    kernel = getattr(_triton_kernels(), name)
    with _on(x.device):
        kernel[grid](x, dx, *(w.to(acc).contiguous() for w in weights), *sizes, _language(acc), block_w, block_c)


def _blocks(x: Tensor, columns: int) -> tuple[int, int]:
    """BLOCK_W, BLOCK_C: powers of two, the longer along what is next to each other in memory."""
    if x.stride(1) == 1:
        block_c = min(_power_of_two(x.shape[1]), BLOCK)
        return min(_power_of_two(columns), TILE // block_c), block_c
    block_w = min(_power_of_two(columns), BLOCK)
    return block_w, min(_power_of_two(x.shape[1]), TILE // block_w)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _language(dtype: torch.dtype):
    import triton.language as tl

    return getattr(tl, str(dtype).removeprefix('torch.'))


def _factor(x: Tensor):
    return _language(torch.float32 if INTERPRETED else x.dtype)


def _on(device: torch.device):
    return torch.cuda.device(device if device.type == 'cuda' else -1)


def _dense_kernels() -> ModuleType:
    from . import triton_dense

    return triton_dense


def _triton_kernels() -> ModuleType:
    from . import triton_kernels

    return triton_kernels


@constant_when_compiled
def reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot be had for maps of this type; found out once a process by running one, and reported."""
    if (device, dtype) not in _reasons:
        kind = str(dtype).removeprefix('torch.')
        try:
            _run_on_ones(device, dtype)
        except Exception as error:  # whatever a compiler or driver comes up with: operators do the same
            why = _reasons[device, dtype] = one_line(f'{type(error).__name__}: {error}')[:300]
            message = f"training statistics of {kind}: by torch's operators, which are slower: {why}"
            kernels.report(message, logging.WARNING)
        else:
            _reasons[device, dtype] = None
            kernels.report(f'training statistics of {kind}: by Triton kernels', logging.INFO)
    return _reasons[device, dtype]


_reasons: dict[tuple[torch.device, torch.dtype], str | None] = {}


def _run_on_ones(device: torch.device, dtype: torch.dtype) -> None:
    """Run kernels on a map of ones.

    Raises:
        Exception: of any class, if that doesn't work or gives something else than is known of such a map.
    """
    if os.environ.get('MOBILEONE_KERNELS', '1') == '0':
        raise OSError('MOBILEONE_KERNELS=0')
    if device.type == 'cuda' and dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):
        raise TypeError(f'{torch.cuda.get_device_name(device)} has no bfloat16')  # Triton's compiler would abort
    x = torch.ones(1, 1, 3, 3, dtype=dtype, device=device)
    shift = x.new_zeros(1)
    plane, strided = plane_sums(x, shift), strided_sums(x, shift)
    # Of 9 pixels; the center taps of four patches.
    sums = plane[0, 31], plane[0, 2], strided[0, 49], stem_sums(x, shift)[4, 4] if dtype != torch.float64 else 4
    if tuple(map(float, sums)) != (9, 9, 4, 4):
        raise ArithmeticError('the kernels compute something else than they should')


@constant_when_compiled
def _say_too_large() -> None:
    _report_large()


@cache
def _report_large() -> None:
    kernels.report("training statistics of maps of 2^31 values or more: by torch's operators", logging.WARNING)
