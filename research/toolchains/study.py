"""Which toolchains does a network survive, raw, prepared, snapped? The study behind ``python -m research.toolchains``.

A network is prepared as ``tools/quantize.py --prepare`` does it, snapped as ``--preround`` does (with ``--per-tensor``
for quantizers of one scale), and then given to a quantizer that knows nothing of it: with that one's own defaults
(quantizers.py), or with what it offers networks that lose by them (advanced.py).

Losses are paired: the interval of 95 % comes from the photos on which only one of the two networks is right.
"""

import importlib.metadata
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import get_git_hash
from torch import Tensor, nn

from mobileone_ext.data.check import prepare_data
from mobileone_ext.data.pixels import Preprocessing
from mobileone_ext.deploy.compare import Difference, top_accuracies
from mobileone_ext.deploy.export import load_fused
from mobileone_ext.deploy.quantization import Options
from mobileone_ext.deploy.quantization import photos as calibration
from mobileone_ext.deploy.quantization.prepare import prepare
from mobileone_ext.deploy.quantization.rounding import LEVELS
from mobileone_ext.files import csv_text, write_text
from mobileone_ext.provenance import processor
from mobileone_ext.text import markdown_table
from research.paired import changes, estimate, losses
from research.training import read_rows

from . import advanced, layers, quantizers
from .quantizers import Predict, Quantizer

QUANTIZERS = {**quantizers.QUANTIZERS, **advanced.QUANTIZERS}

NETWORKS = ('raw', 'prepared', 'snapped')
FIGURES = ('top1', 'top5', 'flips', 'num_images', 'num_photos', 'version', 'processor', 'changes', 'commit')
COLUMNS = ('network', 'quantizer', 'scales', *FIGURES)
BATCH = 50

Arm = tuple[str, str, str]  # network, quantizer, scales


def arms(networks: Sequence[str] | None = None, parts: Sequence[str] | None = None) -> list[Arm]:
    """What is to be run: ``networks``, and the quantizers whose names hold one of ``parts``.

    Raises:
        ValueError: for a name that is none.
    """
    for network in networks or ():
        if network not in NETWORKS:
            raise ValueError(f'--networks {network}: allowed are {", ".join(NETWORKS)}')
    for part in parts or ():
        if not any(part.lower() in name.lower() for name in QUANTIZERS):
            raise ValueError(f'--quantizers {part}: part of none of these names: {", ".join(QUANTIZERS)}')
    return [
        (network, name, scales)
        for scales in ('channel', 'tensor', 'none')
        for name, quantizer in QUANTIZERS.items()
        if scales in quantizer.scales and (parts is None or any(part.lower() in name.lower() for part in parts))
        for network in networks or NETWORKS
    ]


class TestSet:
    """The config's test set in memory: ``pixels`` uint8 (N, C, H, W), ``labels`` (N,), the float outputs."""

    def __init__(self, config: Config, model: nn.Module):
        preprocessing = Preprocessing(config)
        self.normalize = preprocessing.normalize
        prepare_data(config, 'test_dataloader', classes=model.classes)
        pixels, labels = [], []
        for batch in Runner.build_dataloader(config.test_dataloader):
            images = torch.stack(list(batch['inputs']))
            pixels.append(images.flip(1) if preprocessing.to_rgb else images)
            labels.extend(sample.gt_label for sample in batch['data_samples'])
        self.pixels, self.labels = torch.cat(pixels), torch.cat(labels)
        self.expected = self.outputs(model)

    @torch.no_grad()
    def outputs(self, predict: Predict) -> Tensor:
        return torch.cat([predict(self.normalize(chunk.float())) for chunk in self.pixels.split(BATCH)])

    def measure(self, predict: Predict) -> dict:
        """``top1``, ``top5`` (percent), ``flips`` (predictions unlike the float network's), ``num_images``,
        and ``changes``, see paired.py."""
        result = self.outputs(predict)
        difference = Difference()
        difference.add(self.expected, result, ('the float network', 'the quantized one'))
        top1, top5 = top_accuracies(result, self.labels)
        flips = difference.changed_predictions
        changed = changes(self.expected, result, self.labels)
        return dict(top1=f'{top1:.2f}', top5=f'{top5:.2f}', flips=flips, num_images=len(result), changes=changed)


def build(quantizer: Quantizer, name: str, model: nn.Module, photos: Tensor, scales: str, folder: Path) -> Predict:
    """The network as ``quantizer`` makes it.

    Raises:
        ValueError: if it is not installed; the message has the command.
    """
    try:
        return quantizer.build(model, photos, scales == 'channel', folder)
    except ImportError as error:
        raise ValueError(f'{name} is not installed ({error}): pip install {quantizer.package}') from error


def read_photos(config: Config, folder: str, count: int) -> Tensor:
    """``count`` normalized images (N, C, H, W)."""
    preprocessing = Preprocessing(config)
    return preprocessing.normalize(calibration.read(*calibration.find(config, folder), preprocessing, count))


def run(config: Config, weights: str, folder: str, count: int, todo: Iterable[Arm], path: Path) -> list[dict]:
    """Run what has no row in the CSV file ``path`` yet; all rows. What is not installed is named and passed over."""
    rows = read_rows(path) if path.exists() else []
    done = {(row['network'], row['quantizer'], row['scales']) for row in rows}
    todo = [arm for arm in todo if arm not in done]
    if not todo:
        return rows
    torch.set_num_threads(1)
    model, photos = load_fused(config, weights), read_photos(config, folder, count)
    test = TestSet(config, model)

    def add(arm: Arm, predict: Predict, version: str) -> None:
        ran = dict(num_photos=len(photos), version=version, processor=processor(), commit=get_git_hash(digits=7))
        rows.append({**dict(zip(COLUMNS, arm)), **test.measure(predict), **ran})
        write_text(csv_text(rows, COLUMNS), path)
        print(*(rows[-1][key] for key in COLUMNS if key != 'changes'), sep='; ', flush=True)

    if ('float', '', '') not in done:
        add(('float', '', ''), model, f'torch {torch.__version__}')
    networks: dict[tuple, nn.Module] = {}
    for arm in todo:
        network, name, scales = arm
        quantizer = QUANTIZERS[name]
        key = network, scales, quantizer.steps
        if network != 'raw' and key not in networks:
            options = Options(per_channel=scales != 'tensor')
            networks[key] = prepare(model, photos, options, quantizer.steps if network == 'snapped' else None)[0]
        with tempfile.TemporaryDirectory() as scratch:
            try:
                predict = build(quantizer, name, networks.get(key, model), photos, scales, Path(scratch))
            except ValueError as error:
                if not isinstance(error.__cause__, ImportError):
                    raise
                print(error, flush=True)
                continue
            versions = [f'{package} {importlib.metadata.version(package)}' for package in quantizer.package.split()]
            add(arm, predict, ', '.join(versions))
    return rows


def show_layers(config: Config, weights: str, folder: str, count: int, networks: Sequence[str]) -> None:
    """Print what each layer of ``networks`` costs alone: every other photo calibrates, the rest measure."""
    torch.set_num_threads(1)
    model, photos = load_fused(config, weights), read_photos(config, folder, count)
    for network in networks:
        steps = LEVELS if network == 'snapped' else None
        ready = model if network == 'raw' else prepare(model, photos[::2], Options(), steps)[0]
        print(f'{network}:\n\n{layers.table(layers.costs(ready, photos[::2], photos[1::2]))}\n', flush=True)


def table(rows: Sequence[dict]) -> str:
    """Markdown: a line a quantizer and kind of scales; top-1, flips and the loss with its interval of each network."""
    result = {(row['network'], row['quantizer'], row['scales']): row for row in rows}
    reference = result['float', '', '']
    lines = []
    for name, scales in dict.fromkeys((name, scales) for _, name, scales in result if name):
        cells = [result.get((network, name, scales)) for network in NETWORKS]
        lines.append(
            (
                name,
                scales,
                *(f'{cell["top1"]} ({cell["flips"]}); {estimate(losses(cell))}' if cell else '' for cell in cells),
            )
        )
    return f'Float: {reference["top1"]} of {reference["num_images"]} images. Top-1 (flips); loss.\n\n' + markdown_table(
        ('quantizer', 'weights: a scale for each', *NETWORKS), lines
    )
