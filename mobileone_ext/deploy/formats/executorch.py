"""ExecuTorch: ``*.pte``, all of it for XNNPACK, one image at a time."""

import copy
import json
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from .base import Network, Request, only, quiet
from .modules import half_precision

_METADATA = 'metadata'  # a method of the program without arguments; it returns a JSON object


def write(net: nn.Module, image: Tensor, path: Path, request: Request) -> None:
    logging.getLogger('torch.utils._pytree').setLevel(logging.ERROR)
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

    net = half_precision(net) if request.half else copy.deepcopy(net)
    net.to(memory_format=torch.contiguous_format)  # it takes no weights in channels_last
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        program = to_edge_transform_and_lower(
            torch.export.export(net, (image[:1],)),
            partitioner=[XnnpackPartitioner()],
            constant_methods={_METADATA: json.dumps(request.metadata)},
        ).to_executorch()
    path.write_bytes(program.buffer)


def open_file(path: Path, threads: int | None, batch: int | None) -> Network:
    logging.getLogger('torch.utils._pytree').setLevel(logging.ERROR)
    with quiet():
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

    with quiet():
        if threads:
            portable_lib._unsafe_reset_threadpool(threads)  # of the process: unsafe while a network runs
        program = Runtime.get().load_program(path)
        method = program.load_method('forward')
        metadata = {}
        if _METADATA in program.method_names:
            metadata = json.loads(program.load_method(_METADATA).execute([])[0])
    shape = tuple(method.metadata.input_tensor_meta(only(range(method.metadata.num_inputs()))).sizes())
    classes = method.metadata.output_tensor_meta(0).sizes()[-1]
    return Network(
        lambda images: method.execute([torch.from_numpy(images)])[0].numpy(),
        True,
        classes,
        metadata,
        shape,
        int8=metadata.get('precision') == 'int8',
    )
