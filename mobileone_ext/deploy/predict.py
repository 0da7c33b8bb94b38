"""What tools/predict.py does: the best classes of images, by a checkpoint or an exported file."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor, nn

from ..checkpoints.load import load_weights
from ..data.classes import class_names, labels
from ..data.pixels import Normalize, in_batches, read_images
from ..files import csv_text, json_text
from . import fuse
from .compare import check_finite
from .runtime import Network, open_network

EXPORTED = ('.onnx', '.xml')
COLUMNS = ('image', 'rank', 'label', 'index', 'score')


def open_classifier(config: Config, path: str, ema: str = 'auto', trust: bool = False) -> Callable[[Tensor], Tensor]:
    """A function from pixels (N, 3, H, W), 0 .. 255, to probabilities (N, classes).

    Args:
        path: a checkpoint of any layout and form, or an ONNX (float or int8) or OpenVINO file.

    Raises:
        ValueError: for a network of another class count than the config's.
    """
    normalize = Normalize(config)
    if Path(path).suffix not in EXPORTED:
        weights = load_weights(path, ema, trust)
        model = fuse.load_model(config, weights, path)
        return lambda pixels: model(normalize(pixels)).softmax(1)
    network = open_network(path)
    classes = config.model.head.num_classes
    if network.num_classes != classes:
        raise ValueError(f'{path}: has {network.num_classes} classes, the config has {classes}')
    return lambda pixels: _probabilities(network, normalize, pixels)


def _probabilities(network: Network, normalize: nn.Module, pixels: Tensor) -> Tensor:
    inside = network.metadata.get('input', '').startswith('pixels')
    output = torch.from_numpy(np.array(network((pixels if inside else normalize(pixels)).numpy())))
    return output if network.metadata.get('output') == 'probabilities' else output.softmax(1)


@torch.no_grad()
def predict(
    config: Config, classify: Callable[[Tensor], Tensor], paths: Iterable[Path], skipped: list[str], top: int = 5
) -> Iterator[dict]:
    """For each readable image ``dict(image=path, predictions=[dict(label, index, score), ...])``, best first.

    Unreadable files add a message to ``skipped``.
    """
    names = labels(class_names(config), config.model.head.num_classes)
    for files, pixels in in_batches(read_images(config, list(paths), skipped), 16):
        probabilities = classify(pixels)
        check_finite(probabilities, 'the network')  # topk takes NaN for the largest
        scores, indices = probabilities.topk(min(top, len(names)))
        for file, row, numbers in zip(files, scores.tolist(), indices.tolist()):
            best = [dict(label=names[index], index=index, score=score) for index, score in zip(numbers, row)]
            yield dict(image=str(file), predictions=best)


def as_csv(results: list[dict]) -> str:
    """One line a prediction, with ``COLUMNS``."""
    rows = (
        dict(image=result['image'], rank=rank, **best)
        for result in results
        for rank, best in enumerate(result['predictions'], 1)
    )
    return csv_text(rows, COLUMNS)


FORMATS: dict[str, Callable[[list[dict]], str]] = {'.json': json_text, '.csv': as_csv}


def check_format(path: str | Path) -> None:
    """Raise ValueError if results cannot be written to a file of this name."""
    if Path(path).suffix not in FORMATS:
        raise ValueError(f'{path}: results are written to {" or ".join(f"*{suffix}" for suffix in FORMATS)}')


def draw(result: dict) -> Image.Image:
    """The picture with its predictions and their scores as bars below it."""
    picture = ImageOps.exif_transpose(Image.open(result['image'])).convert('RGB')
    width = max(320, min(picture.width, 640))
    picture = picture.resize((width, round(picture.height * width / picture.width)))
    line = 24
    sheet = Image.new('RGB', (width, picture.height + line * len(result['predictions']) + 8), 'white')
    sheet.paste(picture)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, best in enumerate(result['predictions']):
        top = picture.height + 4 + row * line
        pen.rectangle((0, top + 1, best['score'] * width, top + line - 2), fill='#bcd7f5')
        text = f'{best["score"]:6.1%}  {best["label"]}'
        while pen.textlength(text, font) > width - 16:
            text = text[:-2] + '…'
        pen.text((8, top + 3), text, 'black', font)
    return sheet
