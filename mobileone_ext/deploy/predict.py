"""What tools/predict.py does: the best classes of images, by a checkpoint or an exported file.

Without torch, for an exported file that says itself what it takes.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, Union

import numpy as np
from PIL import Image, ImageDraw

from ..data.decode import read_rgb
from ..data.images import Listing, find_images
from ..data.reading import in_batches
from ..files import check_distinct, csv_text, json_text, suffix_of, write_atomically
from ..metadata import Metadata
from ..text import as_text, printable, with_progress
from .classifier import Classifier, open_classifier

if TYPE_CHECKING:
    from torch import nn

COLUMNS = ('image', 'rank', 'label', 'index', 'score', 'unknown')


class Prediction(TypedDict):
    """A class by its name and its place among the outputs, and its score, 0 .. 1."""

    label: str
    index: int
    score: float


class Result(TypedDict):
    """The path of an image, whether no score reaches the threshold of the network, its best classes, best first, and
    maybe where it looked for the best: (h, w), 0 .. 255, over the part of the photo that it saw."""

    image: str
    unknown: bool
    predictions: list[Prediction]
    looked: NotRequired[np.ndarray]


def predict(
    network: Union[str, Path, 'nn.Module', Classifier],
    photos: str | Path | Iterable[str | Path],
    top: int = 5,
    skipped: list[str] | None = None,
    **opening: Any,
) -> list[Result]:
    """The best classes of each image.

    Args:
        network: a checkpoint, an exported file, a run's folder, published weights by name, or a network in memory.
        photos: image files and folders of them.
        top: how many classes.
        skipped: gets a message about each file that is not a readable image; None raises.
        opening: ``config``, ``metadata`` and the others of :func:`mobileone_ext.deploy.classifier.open_classifier`.

    Raises:
        OSError, ValueError: for a network or photos that cannot be read, or outputs that are not finite.
    """
    classify, results = open_classifier(network, **opening), list[Result]()
    paths = photos if isinstance(photos, Listing) else find_images(photos, skipped)
    images = classify.preprocessing.read(with_progress(paths, 'photos', len(paths)), skipped)
    threshold = classify.metadata.threshold
    for files, pixels in in_batches(images, 16):
        scores = classify(pixels)
        names = classify.classes or [str(index) for index in range(scores.shape[1])]
        looked = classify.looked(scores.argmax(1)) if classify.looked else None
        for number, (file, row) in enumerate(zip(files, scores)):
            best = np.argsort(-row, kind='stable')[:top].tolist()
            found = [Prediction(label=names[index], index=index, score=float(row[index])) for index in best]
            unknown = threshold is not None and not (row >= threshold).any()
            results.append(Result(image=str(file), unknown=unknown, predictions=found))
            if looked is not None:
                results[-1]['looked'] = looked[number]
    return results


def as_json(results: Sequence[Result]) -> str:
    kept = ({key: result[key] for key in ('image', 'unknown', 'predictions')} for result in results)
    return json_text([dict(result, image=as_text(result['image'])) for result in kept])


def as_csv(results: Sequence[Result]) -> str:
    """One line a prediction, with ``COLUMNS``."""
    rows = (
        dict(best, image=as_text(result['image']), rank=rank, label=as_text(best['label']), unknown=result['unknown'])
        for result in results
        for rank, best in enumerate(result['predictions'], 1)
    )
    return csv_text(rows, COLUMNS)


FORMATS: dict[str, Callable[[Sequence[Result]], str]] = {'.json': as_json, '.csv': as_csv}


def answer(result: Result, threshold: float | Sequence[float] | None, show_all: bool = False) -> list[str]:
    """What the console says below the name of an image: its best classes, of several labels those that reach their
    ``threshold``, or that it is unknown; with ``show_all`` the best classes whatever their scores."""
    shown = result['predictions']
    if result['unknown'] and not show_all:
        return [f'unknown ({shown[0]["score"]:.2f} {printable(shown[0]["label"])})']
    if isinstance(threshold, Sequence) and not show_all:
        shown = [best for best in shown if best['score'] >= threshold[best['index']]]
    return [f'{best["score"]:6.1%}  {printable(best["label"])}' for best in shown]


def check_format(path: str | Path) -> None:
    """Raise ValueError if results cannot be written to a file of this name."""
    if suffix_of(path) not in FORMATS:
        raise ValueError(f'{path}: results are written to {" or ".join(f"*{suffix}" for suffix in FORMATS)}')


def picture_name(number: int, image: str) -> str:
    """A file name for the drawing of ``image``: its number, and as much of its name as a file system takes."""
    stem = printable(Path(image).stem).encode('utf-8')[:100].decode('utf-8', 'ignore')
    return f'{number:04d}_{stem}.png'


def save_drawings(
    results: Sequence[Result], folder: Path, photos: Sequence[Path], view: Metadata | None = None
) -> list[str]:
    """Write the picture of :func:`draw` for each result into ``folder``, a PNG; what could not be drawn, and why.

    Args:
        view: says which part of a photo the network saw, if where it looked is to be drawn.

    Raises:
        ValueError: if a picture would take the place of one of ``photos``.
    """
    failed = []
    for number, result in enumerate(results):
        path = folder / picture_name(number, result['image'])
        check_distinct(path, *(photos if path.exists() else ()))
        try:
            with write_atomically(path) as part:
                draw(result, view).save(part, 'png')
        except (OSError, ValueError) as error:  # gone since, or a full disk: the other photos are drawn
            failed.append(str(error))
    return failed


def draw(result: Result, view: Metadata | None = None) -> Image.Image:
    """The picture with its predictions and their scores as bars below it; ``view`` as in :func:`save_drawings`."""
    from ..pictures import Line, write_on

    picture = read_rgb(result['image'], 640)
    if view and 'looked' in result:
        from .explain import lay_over, seen_part

        picture = lay_over(picture, result['looked'], seen_part(view, *picture.size) or (0, 0, 1, 1))
    width = max(320, min(picture.width, 640))
    picture = picture.resize((width, max(1, min(round(picture.height * width / picture.width), 4 * width))))
    line = 24
    rows = [(best['score'], f'{best["score"]:6.1%}  {best["label"]}') for best in result['predictions']]
    rows = [(0.0, 'unknown'), *rows] if result['unknown'] else rows
    sheet = Image.new('RGB', (width, picture.height + line * len(rows) + 8), 'white')
    sheet.paste(picture)
    pen, lines = ImageDraw.Draw(sheet), []
    for row, (score, text) in enumerate(rows):
        top = picture.height + 4 + row * line
        pen.rectangle((0, top + 1, score * width, top + line - 2), fill='#bcd7f5')
        lines.append(Line(text, 8, top + 3, width - 16))
    return write_on(sheet, lines, 14)
