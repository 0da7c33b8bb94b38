"""ncnn: ``*.param``, the graph as text, ``*.bin``, its weights, and ``*.json``, what neither has a place for."""

from __future__ import annotations

import io
import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...provenance import sha256
from . import OUTPUT_NAME
from .base import Network, Request, beside, check_pair, described_shape, only

if TYPE_CHECKING:
    from torch import Tensor, nn

_WEIGHTS = 'weights_sha256'


def write(net: nn.Module, image: Tensor, path: Path, request: Request) -> None:
    import pnnx
    import torch

    image = image[:1]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, 'net.pt')
        buffer = io.BytesIO()  # on a full disk torch ends the whole process
        torch.jit.save(torch.jit.trace(net, image), buffer)
        source.write_bytes(buffer.getvalue())
        sides = {key: Path(folder, key) for key in ('pnnxparam', 'pnnxbin', 'pnnxpy', 'pnnxonnx', 'ncnnpy')}
        done = subprocess.run(
            [
                pnnx.EXEC_PATH,
                str(source),
                f'inputshape=[{",".join(map(str, image.shape))}]f32',
                f'fp16={int(request.half)}',
                f'ncnnparam={path}',
                f'ncnnbin={path.with_suffix(".bin")}',
                *(f'{key}={side}' for key, side in sides.items()),
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode or not path.is_file():
            lines = f'{done.stdout}{done.stderr}'.strip().splitlines()
            raise ValueError(f'pnnx cannot write this network as ncnn ({lines[-1] if lines else "no word"})')
    names = {'in0': request.input_name, 'out0': OUTPUT_NAME}
    lines = [_renamed(line, names) for line in path.read_text(encoding='utf-8').splitlines()]
    # pnnx passes on what ncnn has no layer for, under PyTorch's name.
    unknown = [kind for kind in (line.split()[0] for line in lines[2:]) if '.' in kind or '::' in kind]
    if unknown:
        raise ValueError(f'ncnn has no layer for {unknown[0]}')
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    facts = {**request.metadata, _WEIGHTS: sha256(path.with_suffix('.bin'))}
    path.with_suffix('.json').write_text(json.dumps(facts, indent=2) + '\n', encoding='utf-8')


def _renamed(line: str, names: dict[str, str]) -> str:
    """A line of the graph with its blobs renamed: type, layer, counts of inputs and outputs, their names, options."""
    fields = line.split()
    if len(fields) < 4 or '=' in fields[2]:
        return line
    end = 4 + int(fields[2]) + int(fields[3])
    blobs = [names.get(field, field) for field in fields[4:end]]
    return f'{fields[0]:<24} {fields[1]:<24} {fields[2]} {fields[3]} {" ".join(blobs + fields[end:])}'


def open_file(path: Path, threads: int | None, batch: int | None) -> Network:
    import ncnn

    weights, facts = beside(path, '.bin'), beside(path, '.json')
    metadata = json.loads(facts.read_text(encoding='utf-8')) if facts.is_file() else {}
    check_pair(path, weights, metadata.pop(_WEIGHTS, None))
    net = ncnn.Net()
    if threads:
        net.opt.num_threads = threads
    # By default it computes in 16 bits where the processor has them. A half file does so on a phone; here its rounded
    # weights are measured in float32.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    # The library goes on after a failure, and crashes.
    if net.load_param(str(path)):
        raise ValueError('not a graph of ncnn')
    if net.load_model(str(weights)):
        raise ValueError(f'{weights.name} does not fit the graph')
    image, output = only(net.input_names()), net.output_names()[0]

    def call(images: np.ndarray) -> np.ndarray:
        with net.create_extractor() as extractor:
            extractor.input(image, ncnn.Mat(images[0]).clone())
            code, values = extractor.extract(output)
            if code:
                raise ValueError(f'ncnn failed with code {code}')
            return np.array(values)[None]

    return Network(call, True, None, metadata, (1, *described_shape(metadata)))
