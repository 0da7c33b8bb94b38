"""How far is each exported file from PyTorch? The study behind ``python -m research.formats``.

The files are made by what ``tools/export.py`` does and measured by what ``tools/test.py FILE --against`` does.
"""

import csv
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.utils import get_git_hash
from torch import Tensor, nn

from mobileone_ext.deploy import DEFAULT_SIZE, export
from mobileone_ext.deploy.exported import ExportedClassifier
from mobileone_ext.deploy.formats import FORMAT_OF_SUFFIX
from mobileone_ext.deploy.formats.base import Network
from mobileone_ext.engine.test import evaluate_file
from mobileone_ext.files import csv_text, write_text
from mobileone_ext.text import code, markdown_table

SUFFIXES = [suffix for suffix, form in FORMAT_OF_SUFFIX.items() if form != 'coreml']
COLUMNS = ('file', 'precision', 'top1', 'top5', 'changed', 'abs', 'rel', 'bytes', 'cpu_ms', 'images', 'commit')


class Remembered(nn.Module):
    """``net``, asked once for the images that each file gets again."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.outputs = net, {}

    def forward(self, images: Tensor) -> Tensor:
        key = hashlib.sha256(images.contiguous().numpy()).digest()
        if key not in self.outputs:
            self.outputs[key] = self.net(images)
        return self.outputs[key]


class Timed:
    """``network`` with the processor time of its calls, all threads together, in ``seconds``."""

    def __init__(self, network: Network):
        self.network, self.seconds = network, 0.0

    def __getattr__(self, name: str):
        return getattr(self.network, name)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        start = time.process_time()
        try:
            return self.network(images)
        finally:
            self.seconds += time.process_time() - start


def measure_all(
    config: Config, weights: str, out: Path, suffixes: Sequence[str] = SUFFIXES, size: int = DEFAULT_SIZE
) -> list[dict]:
    """A row with ``COLUMNS`` for each file, kept in ``out/runs.csv`` as they come; those that are there are kept."""
    runs = out / 'runs.csv'
    rows = list(csv.DictReader(runs.read_text(encoding='utf-8').splitlines())) if runs.exists() else []
    done = {(row['file'], row['precision']) for row in rows}
    model = export.load_fused(config, weights)
    reference = Remembered(model)
    for precision in ('float32', 'float16'):
        for suffix in suffixes:
            if (suffix, precision) not in done:
                rows.append(measure(config, weights, model, reference, out, suffix, precision == 'float16', size))
                write_text(csv_text(rows, COLUMNS), runs)
    return rows


def measure(
    config: Config, weights: str, model: nn.Module, reference: nn.Module, out: Path, suffix: str, half: bool, size: int
) -> dict:
    """Export the fused ``model`` of the file ``weights`` and measure the file against ``reference``, the same net."""
    form, path = FORMAT_OF_SUFFIX[suffix], out / f'{"half" if half else "float"}{suffix.replace(".", "_")}{suffix}'
    export.export(model, path, format=form, image_size=size, half=half)
    classifier = ExportedClassifier(config, path, reference=reference, threads=1)
    classifier.network = Timed(classifier.network)
    result = evaluate_file(config, classifier)
    weight = sum(file.stat().st_size for file in (path, *export.companions(path)))
    return dict(
        file=suffix,
        precision='float16' if half else 'float32',
        top1=result['accuracy/top1'],
        top5=result['accuracy/top5'],
        changed=result['changed_predictions'],
        abs=result['max_abs_logit_diff'],
        rel=result['max_rel_logit_diff'],
        bytes=weight,
        cpu_ms=1e3 * classifier.network.seconds / result['num_images'],
        images=result['num_images'],
        commit=get_git_hash(digits=7),
    )


def table(rows: list[dict]) -> str:
    """Markdown, a line a file."""
    headings = 'file', '', 'top-1', 'top-5', 'changed predictions', 'largest difference of a logit'
    lines = []
    for row in rows:
        top1, top5, largest, relative, size, time = (
            float(row[key]) for key in ('top1', 'top5', 'abs', 'rel', 'bytes', 'cpu_ms')
        )
        accuracy = f'{top1:.2f}', f'{top5:.2f}', f'{row["changed"]} of {row["images"]}'
        costs = f'{largest:.1e}', f'{relative:.1e}', f'{size / 1e6:.1f}', f'{time:.1f}'
        lines.append((code(f'*{row["file"]}'), row['precision'], *accuracy, *costs))
    return markdown_table((*headings, 'of the largest logit', 'MB', 'CPU ms an image'), lines) + '\n'
