"""Files for devices: the table of formats, and a module for each with ``write`` and ``open_file``; see ``base``.

Nothing heavy is imported here.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...files import suffix_of

OUTPUT_NAME, HEATMAP_NAME = 'output', 'heatmap'


@dataclass(frozen=True)
class Format:
    """Where a format's code is, what it needs, and what others have to know of its files.

    Attributes:
        suffixes: of its files; the first is the one that is written.
        module: of this folder.
        extra: of the project, which installs what it needs.
        companions: suffixes of the files that belong to the first one, in the order in which they take their places.
        packages: what writing and running it imports beside torch.
        holds: where its file is a folder, the names in it.
        layout: of the images.
        precision: of every file, with ``half`` or without.
        apps: what takes a file of some options alone, and those, of ``Request``.
        platform: the only one that runs it, as ``sys.platform`` has it; empty for any.
        int8: what its int8 files are made from, the ``'graph'`` of ONNX or the ``'network'``; empty if it has none.
        pairs: how quantization is written into the network, see ``quantization/qdq_torch.py``.
        why_no_int8: where there is more to say than that it was not built.
    """

    suffixes: tuple[str, ...]
    module: str
    extra: str = 'deploy'
    companions: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    layout: str = 'NCHW'
    precision: str = 'float32'
    apps: tuple[str, ...] = ()
    platform: str = ''
    int8: str = ''
    pairs: Mapping[str, bool] = field(default_factory=dict)
    why_no_int8: str = ''

    @property
    def runs_here(self) -> bool:
        return self.platform in ('', sys.platform)


_NCNN_INT8 = (
    "ncnn's integers have no zero point: 127 steps above zero where this int8 has 255; write a float network "
    'with --prepare and --preround for its own quantizer'
)
FORMATS = {
    'onnx': Format(('.onnx',), 'onnx', packages=('onnx', 'onnxruntime'), int8='graph'),
    'torchscript': Format(('.pt', '.pt2'), 'torchscript'),
    'openvino': Format(('.xml',), 'openvino', companions=('.bin',), packages=('onnx', 'openvino'), int8='graph'),
    'coreml': Format(
        ('.mlpackage',),
        'coreml',
        'coreml',
        holds=('Manifest.json', 'Data'),
        precision='float16',
        apps=("Vision and Xcode's preview", 'normalize', 'softmax'),
        platform='darwin',
    ),
    'litert': Format(
        ('.tflite',),
        'litert',
        'litert',
        packages=('litert_torch', 'ai_edge_litert'),
        layout='NHWC',
        apps=('MediaPipe', 'normalize'),
        int8='network',
        pairs=dict(folded=False),
    ),
    'executorch': Format(
        ('.pte',), 'executorch', 'executorch', packages=('executorch',), int8='network', pairs=dict(own_range=True)
    ),
    'ncnn': Format(
        ('.param',),
        'ncnn',
        'ncnn',
        companions=('.bin', '.json'),
        packages=('pnnx', 'ncnn'),
        why_no_int8=_NCNN_INT8,
    ),
    'mnn': Format(('.mnn',), 'mnn', 'mnn', packages=('MNN',)),
    'ort': Format(('.ort',), 'onnx'),
}
FORMAT_OF_SUFFIX = {suffix: name for name, form in FORMATS.items() for suffix in form.suffixes}


def format_of(path: str | Path) -> str:
    """The format of a file that is to be written, by its suffix.

    Raises:
        ValueError: for a suffix of none.
    """
    if suffix_of(path) not in FORMAT_OF_SUFFIX:
        raise ValueError(
            f'{path}: the last name is that of the file to write; the suffix says the format, one of '
            f'{", ".join(FORMAT_OF_SUFFIX)}; --format web writes a page'
        )
    return FORMAT_OF_SUFFIX[suffix_of(path)]
