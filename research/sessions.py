"""Int8 ONNX files as processors with VNNI compute them, on any."""

from collections.abc import Callable

import numpy as np

PRECISE = 'session.x64quantprecision'


def open_session(content: bytes, precise: bool):
    """onnxruntime's session of one thread; ``precise``: in exact integers also on processors without VNNI."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry(PRECISE, str(int(precise)))
    return onnxruntime.InferenceSession(content, options)


def in_exact_integers(content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """Outputs of an ONNX file for its one input, ``image``."""
    session = open_session(content, precise=True)
    return lambda images: session.run(None, {'image': images})[0]
