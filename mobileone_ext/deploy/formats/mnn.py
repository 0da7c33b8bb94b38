"""MNN: ``*.mnn``, any number of images at a time.

MNN believes what it reads and ends the process on a damaged file. Files of this project hold their own digest,
which is checked before MNN sees them; others are read by another process first.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .base import Network, Request, described_shape, only, quiet
from .onnx import onnx_proto

if TYPE_CHECKING:
    from torch import Tensor, nn

_DIGEST = 'file_sha256'  # in the metadata: of the file with zeros in the digest's place
_ZEROS = b'0' * 64
_MARK = re.compile(rb'"file_sha256": "([0-9a-f]{64})"')
_LOAD = 'import sys, MNN.nn; MNN.nn.load_module_from_file(sys.argv[1], [], [])'


def write(net: nn.Module, image: Tensor, path: Path, request: Request) -> None:
    with quiet():
        # The converter itself: MNN's command of that name reports to its makers and installs a package for it.
        import _tools
        import MNN  # noqa: F401  (the converter without it is some other package)
        import onnx

    net = _rounded(net) if request.half else net
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, 'net.onnx')
        onnx.save(onnx_proto(net, image, request), source)
        # The one string that a file of MNN has for its user is called bizCode.
        about = json.dumps({**request.metadata, _DIGEST: _ZEROS.decode()})
        command = ['mnnconvert', '-f', 'ONNX', '--modelFile', str(source), '--MNNModel', str(path)]
        command += ['--bizCode', about, *(['--fp16'] if request.half else [])]
        with quiet():
            _tools.mnnconvert(command)
    if not path.is_file():
        raise ValueError('MNN cannot convert this network')
    content = path.read_bytes()
    path.write_bytes(_with_digest(content, hashlib.sha256(content).hexdigest().encode()))


def _rounded(net: nn.Module) -> nn.Module:
    """A copy of ``net`` with parameters that float16 holds: MNN itself would cut digits off, five times the error."""
    net = copy.deepcopy(net)
    for parameter in net.parameters():
        parameter.data = parameter.data.half().float()
    return net


def _with_digest(content: bytes, digest: bytes) -> bytes:
    mark = _MARK.search(content)
    return content[: mark.start(1)] + digest + content[mark.end(1) :]


def _refuse_damaged(path: Path) -> None:
    """Raise ValueError for a file that is not what was written, or that MNN cannot read."""
    content = path.read_bytes()
    mark = _MARK.search(content)
    if mark:
        if hashlib.sha256(_with_digest(content, _ZEROS)).hexdigest().encode() != mark[1]:
            raise ValueError('damaged: its content is not what its sha256 says')
    elif subprocess.run([sys.executable, '-c', _LOAD, path], capture_output=True).returncode:
        raise ValueError('not a file of MNN')


def open_file(path: Path, threads: int | None, batch: int | None) -> Network:
    with quiet():
        import MNN.expr
        import MNN.nn

    _refuse_damaged(path)
    with quiet():
        settings = {'backend': 'CPU', 'precision': 'high', 'numThread': threads or 4}
        runtime = MNN.nn.create_runtime_manager((settings,))
        try:
            net = MNN.nn.load_module_from_file(str(path), [], [], runtime_manager=runtime)
        except SystemError as error:  # its binding loses the message
            raise ValueError('not a file of MNN') from error
    information = net.get_info()
    only(information['inputNames'])
    metadata = _metadata(information['bizCode'])

    def call(images: np.ndarray) -> np.ndarray:
        image = MNN.expr.placeholder(list(images.shape), MNN.expr.NCHW)
        image.write(images)
        (output,) = net.forward([image])
        return np.array(MNN.expr.convert(output, MNN.expr.NCHW).read()).reshape(len(images), -1)

    return Network(call, False, None, metadata, (None, *described_shape(metadata)))


def _metadata(text: str) -> dict[str, str]:
    """What :func:`write` put into the file; empty for a file of another tool."""
    try:
        metadata = json.loads(text)
    except ValueError:
        return {}
    metadata = metadata if isinstance(metadata, dict) else {}
    metadata.pop(_DIGEST, None)
    return metadata
