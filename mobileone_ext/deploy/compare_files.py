"""What tools/compare.py does: two networks, in files of any kind, on the same photos; no labels."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..data.classes import check_same, labels
from ..data.pixels import in_batches
from ..text import as_text, printable, quoted
from .classifier import Classifier
from .compare import Difference

WORST = 5  # photos that are named
BATCH = 16


@torch.no_grad()
def compare_files(classifiers: Sequence[Classifier], paths: Iterable[Path], skipped: list[str]) -> dict:
    """How far the outputs of two classifiers lie apart; each gets the photos as its own config prepares them.

    Args:
        skipped: gets a message about each file that is not an image.

    Returns:
        ``first``, ``second``; ``num_images``, ``changed_predictions``; ``outputs``, what is compared: logits, or
        probabilities where one of the two gives nothing else; ``max_abs_diff`` and ``mean_abs_diff`` of an output,
        ``max_rel_diff`` of an image's largest; ``worst``, the photos with the largest difference: ``image``,
        ``difference``, and each network's best ``label`` and ``score``.

    Raises:
        ValueError: for networks of other classes or another input, outputs that are not finite, or no images.
    """
    first, second = classifiers
    check_alike(first, second)
    difference, total, count, worst = Difference(first.multi_label), 0.0, 0, []
    order, known = None, []
    for files, *pixels in pairs_of_batches(first, second, paths, skipped):
        outputs = [classifier.outputs(images).float().cpu() for classifier, images in zip(classifiers, pixels)]
        if order is None:
            order = common_order(first, second, outputs)
            known = labels(first.classes or second.classes, outputs[0].shape[1])
        outputs[1] = outputs[1][:, order]
        scores = [classifier.scores(values) for classifier, values in zip(classifiers, outputs)]
        logits = first.gives_logits and second.gives_logits
        expected, other = outputs if logits else scores
        difference.add(expected, other, (first.path, second.path))
        apart = (other.double() - expected.double()).abs()
        total, count = total + float(apart.sum()), count + apart.numel()
        for number, file in enumerate(files):
            best = [dict(label=as_text(known[int(s[number].argmax())]), score=float(s[number].max())) for s in scores]
            entry = dict(image=as_text(file), difference=float(apart[number].max()), first=best[0], second=best[1])
            worst = heapq.nlargest(WORST, [*worst, entry], key=lambda entry: entry['difference'])
    return dict(
        first=first.path,
        second=second.path,
        num_images=difference.num_images,
        changed_predictions=difference.changed_predictions,
        outputs='logits' if logits else 'probabilities',
        max_abs_diff=difference.max_abs_diff,
        mean_abs_diff=total / count,
        max_rel_diff=difference.max_rel_diff,
        worst=worst,
    )


def check_alike(first: Classifier, second: Classifier) -> None:
    """Raise ValueError for two networks that take images of other sizes, or tell labels in another way."""
    sizes = [classifier.preprocessing.image_size for classifier in (first, second)]
    if None not in sizes and sizes[0] != sizes[1]:
        taken = [' x '.join(map(str, size)) for size in sizes]
        raise ValueError(f'{first.path}: takes images of {taken[0]} pixels, {second.path} of {taken[1]}')
    if first.multi_label != second.multi_label:
        several = first if first.multi_label else second
        raise ValueError(f'{several.path}: gives an image several labels, the other network one')


def common_order(first: Classifier, second: Classifier, outputs: Sequence[Tensor]) -> list[int]:
    """Where the second network has the classes of the first; by name where both know names.

    Raises:
        ValueError: if they have other classes.
    """
    counts = [output.shape[1] for output in outputs]
    if counts[0] != counts[1]:
        known = [f' ({quoted(one.classes)})' if one.classes else '' for one in (first, second)]
        raise ValueError(f'{first.path}: has {counts[0]} classes{known[0]}, {second.path} has {counts[1]}{known[1]}')
    if first.classes and second.classes and sorted(first.classes) == sorted(second.classes):
        return [list(second.classes).index(name) for name in first.classes]
    check_same(second.classes, first.classes, second.path, first.path)
    return list(range(counts[0]))


def pairs_of_batches(
    first: Classifier, second: Classifier, paths: Iterable[Path], skipped: list[str]
) -> Iterator[tuple[list[Path], Tensor, Tensor]]:
    """Files, and their pixels as each of two networks takes them."""
    one, other = first.preprocessing, second.preprocessing
    are_alike = one.pipeline == other.pipeline and one.to_rgb == other.to_rgb
    for files, pixels in in_batches(one.read(paths, skipped), BATCH):
        yield files, pixels, pixels if are_alike else torch.stack([image for _, image in other.read(files, [])])


def describe(report: dict) -> str:
    """A report of :func:`compare_files` as lines for the console."""
    lines = [
        f'{report["num_images"]} images: {report["changed_predictions"]} predictions changed; {report["outputs"]} '
        f'differ by {report["max_abs_diff"]:.1e} at most ({report["max_rel_diff"]:.1e} of the largest), '
        f'{report["mean_abs_diff"]:.1e} in the mean'
    ]
    for entry in report['worst'] if report['max_abs_diff'] else ():
        one, other = (f'{best["score"]:.1%} {printable(best["label"])}' for best in (entry['first'], entry['second']))
        lines.append(f'  {entry["difference"]:.1e}  {printable(entry["image"])}: {one}; {other}')
    return '\n'.join(lines)
