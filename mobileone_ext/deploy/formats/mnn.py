"""MNN: ``*.mnn``, any number of images at a time."""

import json
import tempfile
from pathlib import Path

import numpy as np
from torch import nn

from .base import Network, Request, needed_for, quiet
from .onnx import onnx_proto


def write(net: nn.Module, path: Path, request: Request) -> None:
    with needed_for('mnn'), quiet():
        # The converter itself: MNN's command of that name reports to its makers and installs a package for it.
        import _tools
        import MNN  # noqa: F401  (the converter without it is some other package)
        import onnx

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, 'net.onnx')
        onnx.save(onnx_proto(net, request.image, request.opset, request.dynamic_batch, request.input_name), source)
        # The one string that a file of MNN has for its user is called bizCode.
        command = ['mnnconvert', '-f', 'ONNX', '--modelFile', str(source), '--MNNModel', str(path)]
        command += ['--bizCode', json.dumps(request.metadata), *(['--fp16'] if request.half else [])]
        with quiet():
            _tools.mnnconvert(command)
    if not path.is_file():
        raise ValueError('MNN cannot convert this network')


def open_file(path: Path, threads: int | None, batch: int | None) -> Network:
    with needed_for('mnn'), quiet():
        import MNN.expr
        import MNN.nn

    with quiet():
        settings = {'backend': 'CPU', 'precision': 'high', 'numThread': threads or 4}
        runtime = MNN.nn.create_runtime_manager((settings,))
        try:
            net = MNN.nn.load_module_from_file(str(path), [], [], runtime_manager=runtime)
        except SystemError as error:  # its binding loses the message
            raise ValueError('not a file of MNN') from error
    information = net.get_info()
    if len(information['inputNames']) != 1:
        raise ValueError(f'it has {len(information["inputNames"])} inputs, not one image')
    try:
        metadata = json.loads(information['bizCode'])
    except ValueError:
        metadata = {}

    def call(images: np.ndarray) -> np.ndarray:
        image = MNN.expr.placeholder(list(images.shape), MNN.expr.NCHW)
        image.write(images)
        (found,) = net.forward([image])
        return np.array(MNN.expr.convert(found, MNN.expr.NCHW).read()).reshape(len(images), -1)

    size = json.loads(metadata['size']) if 'size' in metadata else (None, None)
    channels = len(json.loads(metadata['mean'])) if 'mean' in metadata else None
    return Network(call, False, None, metadata, (None, channels, *size))
