"""The same int8 network in other integer types, which processors multiply with other instructions.

The real numbers are the same in each: a value moves with its zero point.
"""

import copy
import statistics
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from mmengine.config import Config
from onnx import numpy_helper

from mobileone_ext.deploy.export import load_fused
from mobileone_ext.text import markdown_table
from research.sessions import PRECISE, open_session
from research.toolchains.study import TestSet

IMAGES = 4  # a turn


def with_unsigned_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Int8 weights as uint8 with zero point 128."""
    return _moved(proto, np.int8, np.uint8, 128)


def with_signed_activations(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Uint8 activations as int8, the zero point moved by 128."""
    return _moved(proto, np.uint8, np.int8, -128)


def _moved(proto: onnx.ModelProto, source: type, target: type, offset: int) -> onnx.ModelProto:
    """Every constant of the type ``source`` in the type ``target``, ``offset`` added: zero points, stored weights."""
    proto = copy.deepcopy(proto)
    for item in proto.graph.initializer:
        values = numpy_helper.to_array(item)
        if values.dtype == source:
            moved = (values.astype(np.int16) + offset).astype(target)
            item.CopyFrom(numpy_helper.from_array(moved, item.name))
    return proto


def kinds(path: Path) -> dict:
    """onnxruntime's sessions, one thread, by name; ``path`` is a file of tools/quantize.py."""
    proto = onnx.load(path)
    files = {
        'u8 x s8 (as written)': (proto, False),
        'u8 x s8, ' + PRECISE + '=1': (proto, True),
        'u8 x u8': (with_unsigned_weights(proto), False),
        's8 x s8': (with_signed_activations(proto), False),
    }
    return {name: open_session(content.SerializeToString(), precise) for name, (content, precise) in files.items()}


def times(sessions: dict, image: np.ndarray, rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of an image; the sessions take turns."""
    result = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            start = time.process_time()
            for _ in range(IMAGES):
                session.run(None, {session.get_inputs()[0].name: image})
            result[name].append((time.process_time() - start) / IMAGES * 1e3)
    return {name: statistics.median(values) for name, values in result.items()}


def table(config: Config, weights: str, path: Path, rounds: int) -> str:
    """Markdown: top-1 and flips on the config's test set; time, over that of the file as it is written."""
    torch.set_num_threads(1)
    sessions = kinds(path)
    test = TestSet(config, load_fused(config, weights))
    result = times(sessions, test.normalize(test.pixels[:1].float()).numpy(), rounds)
    lines = []
    for name, session in sessions.items():
        row = test.measure(lambda images: torch.from_numpy(session.run(None, {'image': images.numpy()})[0]))  # noqa: B023
        ratio = result[name] / next(iter(result.values()))
        lines.append((name, row['top1'], f'{row["flips"]} of {row["num_images"]}', f'{ratio:.2f}'))
    return markdown_table(('activations x weights', 'top-1', 'flips', 'time'), lines)
