"""PyTorch's own files: TorchScript, and programs of ``torch.export``; found out by what is in the archive."""

import io
import json
import zipfile
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from .base import Network, Request, in_rows, only
from .modules import half_precision

_METADATA = 'metadata.json'


def kind_of(path: Path) -> str | None:
    """``'script'``, ``'program'`` of torch.export, or None for another file: weights, or no archive at all."""
    if not zipfile.is_zipfile(path):
        return None
    names = [name.partition('/')[2] or name for name in zipfile.ZipFile(path).namelist()]
    if any(name.startswith('code/') for name in names):
        return 'script'
    is_program = any(name.startswith('models/') or 'serialized_exported_program' in name for name in names)
    return 'program' if is_program else None


def has_tracer() -> bool:
    """Whether this torch still has ``torch.jit.trace`` and the exporter of ONNX that rests on it."""
    return hasattr(torch.jit, 'trace') and find_spec('torch.onnx.utils') is not None


def traced(net: nn.Module, image: Tensor, dynamic_batch: bool):
    """``net`` as a graph for another tool: TorchScript, or where torch has no more of it, a program."""
    if has_tracer():
        return torch.jit.trace(net, image)
    return program_of(net, image, dynamic_batch).run_decompositions({})


def program_of(net: nn.Module, image: Tensor, dynamic_batch: bool) -> torch.export.ExportedProgram:
    """``net`` as a program of torch.export; image (N, C, H, W) is an example, of two images where N may change."""
    batch = {0: torch.export.Dim('batch')} if dynamic_batch else None
    return torch.export.export(net, (image,), dynamic_shapes=(batch,))


def write(net: nn.Module, image: Tensor, path: Path, request: Request) -> None:
    net = half_precision(net) if request.half else net
    extra = {_METADATA: json.dumps(request.metadata)}
    buffer = io.BytesIO()  # on a full disk torch ends the whole process
    if path.suffix == '.pt2':
        torch.export.save(program_of(net, image, request.dynamic_batch), buffer, extra_files=extra)
    else:
        torch.jit.save(torch.jit.freeze(torch.jit.trace(net, image)), buffer, _extra_files=extra)
    path.write_bytes(buffer.getvalue())


def open_file(path: Path, threads: int | None, batch: int | None) -> Network:
    extra, shape, fixed = {_METADATA: ''}, None, False
    if kind_of(path) == 'program':
        program = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra)
        name = only(program.graph_signature.user_inputs)
        (node,) = (node for node in program.graph.nodes if node.name == name)
        shape = tuple(length if isinstance(length, int) else None for length in node.meta['val'].shape)
        fixed = shape[0] == 1
        module = program.module()
    else:
        module = torch.jit.load(str(path), _extra_files=extra)
    if threads:
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def call(images):
        outputs = module(torch.from_numpy(images))
        return in_rows([outputs] if isinstance(outputs, Tensor) else outputs)

    return Network(call, fixed, None, json.loads(extra[_METADATA] or '{}'), shape)
