"""OpenVINO: ``*.xml``, the graph, and ``*.bin``, its weights."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...provenance import sha256
from .base import Network, Request, beside, check_pair, only
from .onnx import onnx_proto

if TYPE_CHECKING:
    from torch import Tensor, nn

_SECTION, _WEIGHTS = 'mobileone', 'mobileone_weights'


def write(net: nn.Module, image: Tensor, path: Path, request: Request) -> None:
    import onnx
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, 'net.onnx')
        onnx.save(onnx_proto(net, image, request), source)
        converted = openvino.convert_model(source)
    for key, value in request.metadata.items():
        converted.set_rt_info(value, [_SECTION, key])
    openvino.save_model(converted, path, compress_to_fp16=request.half)
    # The weights' hash goes into the graph, so that a pair of two exports is told from a whole one.
    weights = path.with_suffix('.bin')
    text = path.read_text(encoding='utf-8')
    entry = f'<{_WEIGHTS} value="{sha256(weights)}" />'
    head, mark, tail = text.rpartition('</rt_info>')
    if not mark:
        head, mark, tail = text.rpartition('</net>')
        entry = f'<rt_info>{entry}</rt_info>'
    path.write_text(f'{head}{entry}{mark}{tail}', encoding='utf-8')


@contextlib.contextmanager
def same_signal_stack() -> Iterator[None]:
    """Within, the thread may be given another stack for signals; afterwards it has its own again.

    OpenVINO's CPU plug-in (2026.4) sets one when it compiles and frees it with the network. The next signal that
    Python handles, Ctrl-C or the end of a loader's worker, would find no memory there and end the process.
    """
    if not sys.platform.startswith('linux'):
        yield
        return
    libc, stack = ctypes.CDLL(None), (ctypes.c_size_t * 3)()  # stack_t: address, flags, size
    libc.sigaltstack(None, ctypes.byref(stack))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(stack), None)


def open_file(path: Path, threads: int | None, batch: int | None) -> Network:
    import openvino

    weights = beside(path, '.bin')
    if not weights.is_file():  # the library does not say which
        raise ValueError(f'{weights.name} is missing: it holds the weights of {path.name}')
    core = openvino.Core()
    model = core.read_model(path, weights)
    expected = str(model.get_rt_info([_WEIGHTS]).value) if model.has_rt_info([_WEIGHTS]) else None
    check_pair(path, weights, expected)
    shape = [length.get_length() if length.is_static else None for length in only(model.inputs).partial_shape]
    if batch and shape[0] is None:
        model.reshape([batch, *list(model.input(0).partial_shape)[1:]])
    # The CPU plug-in computes in bfloat16 where the processor has it, unless told.
    settings = {'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'}
    if threads:
        settings['INFERENCE_NUM_THREADS'] = threads
    with same_signal_stack():
        compiled = core.compile_model(model, 'CPU', settings)
    metadata = dict(model.get_rt_info([_SECTION]).value) if model.has_rt_info([_SECTION]) else {}
    classes = model.output(0).partial_shape[1]
    int8 = any(node.get_type_name() == 'FakeQuantize' for node in model.get_ops())
    return Network(
        lambda images: compiled(images)[0],
        shape[0] is not None,
        classes.get_length() if classes.is_static else None,
        metadata,
        shape,
        int8,
    )
