"""What tools/predict.py does: the best classes of images, by a checkpoint or an exported file."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from PIL import Image, ImageDraw
from torch import Tensor

from ..data.classes import is_multi_label, labels
from ..data.decode import read_rgb
from ..data.pixels import Preprocessing, in_batches
from ..files import check_distinct, csv_text, json_text, suffix_of, write_atomically
from ..pictures import Line, write_on
from ..text import as_text, printable
from . import fuse
from .compare import check_finite
from .exported import ExportedClassifier
from .runtime import is_exported

COLUMNS = ('image', 'rank', 'label', 'index', 'score')


class Classifier:
    """Call it with pixels (N, C, H, W), 0 .. 255, to get scores (N, classes).

    Args:
        path: of its file.
        preprocessing: of the photos.
        outputs: of pixels, the logits (N, classes); the logarithm of scores where a network gives no others.
        classes: names, None if nothing tells them.

    Attributes:
        gives_logits: whether they were logits so far.
        multi_label: each score is of its own, so that an image may have several labels.
    """

    def __init__(
        self,
        path: str,
        preprocessing: Preprocessing,
        outputs: Callable[[Tensor], Tensor],
        classes: Sequence[str] | None,
    ):
        self.path, self.preprocessing, self.outputs, self.classes = path, preprocessing, outputs, classes
        self.gives_logits, self.multi_label = True, is_multi_label(preprocessing.config)

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.scores(self.outputs(pixels))

    def scores(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid() if self.multi_label else outputs.softmax(1)


def open_classifier(
    config: Config, path: str, ema: str = 'auto', trust: bool = False, takes: str | None = None
) -> Classifier:
    """The classifier in ``path``, with the names that it has itself, or else the config's.

    Args:
        path: a checkpoint of any layout and form, or an exported file.
        takes: what goes into a file that does not say so, see :class:`ExportedClassifier`.

    Raises:
        ValueError: for a network of another class count than the config's.
    """
    if is_exported(path):
        exported = ExportedClassifier(config, path, takes)
        classifier = Classifier(path, exported.preprocessing, exported.logits, exported.classes)
        classifier.gives_logits = not exported.probabilities
        return classifier
    preprocessing = Preprocessing(config)
    model = fuse.load_model(config, fuse.read_weights(config, path, ema, trust))

    def outputs(pixels: Tensor) -> Tensor:
        images = preprocessing.normalize(pixels)
        logits = model(images)
        if isinstance(logits, Tensor):
            return logits
        classifier.gives_logits = False  # a head of several outputs knows what to make of them
        scores = torch.stack([sample.pred_score for sample in model(images, mode='predict')])
        return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()

    classifier = Classifier(path, preprocessing, outputs, model.classes)
    return classifier


@torch.no_grad()
def predict(classify: Classifier, paths: Iterable[Path], skipped: list[str], top: int = 5) -> Iterator[dict]:
    """For each readable image ``dict(image=path, predictions=[dict(label, index, score), ...])``, best first.

    Unreadable files add a message to ``skipped``.
    """
    for files, pixels in in_batches(classify.preprocessing.read(paths, skipped), 16):
        probabilities = classify(pixels)
        check_finite(probabilities, 'the network')  # topk takes NaN for the largest
        names = labels(classify.classes, probabilities.shape[1])
        scores, indices = probabilities.topk(min(top, len(names)))
        for file, row, numbers in zip(files, scores.tolist(), indices.tolist()):
            best = [dict(label=names[index], index=index, score=score) for index, score in zip(numbers, row)]
            yield dict(image=str(file), predictions=best)


def as_json(results: list[dict]) -> str:
    return json_text([dict(result, image=as_text(result['image'])) for result in results])


def as_csv(results: list[dict]) -> str:
    """One line a prediction, with ``COLUMNS``."""
    rows = (
        dict(best, image=as_text(result['image']), rank=rank, label=as_text(best['label']))
        for result in results
        for rank, best in enumerate(result['predictions'], 1)
    )
    return csv_text(rows, COLUMNS)


FORMATS: dict[str, Callable[[list[dict]], str]] = {'.json': as_json, '.csv': as_csv}


def check_format(path: str | Path) -> None:
    """Raise ValueError if results cannot be written to a file of this name."""
    if suffix_of(path) not in FORMATS:
        raise ValueError(f'{path}: results are written to {" or ".join(f"*{suffix}" for suffix in FORMATS)}')


def picture_name(number: int, image: str) -> str:
    """A file name for the drawing of ``image``: its number, and as much of its name as a file system takes."""
    stem = printable(Path(image).stem).encode('utf-8')[:100].decode('utf-8', 'ignore')
    return f'{number:04d}_{stem}.png'


def save_drawings(results: Sequence[dict], folder: Path, photos: Sequence[Path]) -> list[str]:
    """Write the picture of :func:`draw` for each result into ``folder``, a PNG; what could not be drawn, and why.

    Raises:
        ValueError: if a picture would take the place of one of ``photos``.
    """
    failed = []
    for number, result in enumerate(results):
        path = folder / picture_name(number, result['image'])
        check_distinct(path, *(photos if path.exists() else ()))
        try:
            with write_atomically(path) as part:
                draw(result).save(part, 'png')
        except (OSError, ValueError) as error:  # gone since, or a full disk: the other photos are drawn
            failed.append(str(error))
    return failed


def draw(result: dict) -> Image.Image:
    """The picture with its predictions and their scores as bars below it."""
    picture = read_rgb(result['image'], 640)
    width = max(320, min(picture.width, 640))
    picture = picture.resize((width, max(1, min(round(picture.height * width / picture.width), 4 * width))))
    line = 24
    sheet = Image.new('RGB', (width, picture.height + line * len(result['predictions']) + 8), 'white')
    sheet.paste(picture)
    pen, lines = ImageDraw.Draw(sheet), []
    for row, best in enumerate(result['predictions']):
        top = picture.height + 4 + row * line
        pen.rectangle((0, top + 1, best['score'] * width, top + line - 2), fill='#bcd7f5')
        lines.append(Line(f'{best["score"]:6.1%}  {best["label"]}', 8, top + 3, width - 16))
    return write_on(sheet, lines, 14)
