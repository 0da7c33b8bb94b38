"""What tools/compare.py does: two networks, in files of any kind, on the same photos; no labels."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch

from ..data.classes import check_same, labels
from ..data.images import Listing, find_images
from ..data.reading import in_batches
from ..text import as_text, printable, quoted, with_progress
from .classifier import Classifier, open_classifier
from .compare import Difference

if TYPE_CHECKING:
    from torch import nn

WORST = 5  # photos that are named
BATCH = 16


def compare_files(
    first: Union[str, Path, 'nn.Module', Classifier],
    second: Union[str, Path, 'nn.Module', Classifier],
    photos: str | Path | Iterable[str | Path],
    skipped: list[str] | None = None,
    **opening: Any,
) -> dict[str, Any]:
    """How far the outputs of two classifiers lie apart; each gets the photos as it takes them itself.

    Args:
        first, second: as of :func:`mobileone_ext.deploy.predict.predict`.
        photos: image files and folders of them.
        skipped: gets a message about each file that is not a readable image; None raises.
        opening: ``otherwise``, ``metadata`` and the others of :func:`mobileone_ext.deploy.classifier.open_classifier`.

    Returns:
        ``first``, ``second``; ``num_images``, ``changed_predictions``; ``outputs``, what is compared: logits, or
        probabilities where one of the two gives nothing else; ``max_abs_diff`` and ``mean_abs_diff`` of an output,
        ``max_rel_diff`` of an image's largest; ``worst``, five photos, those whose prediction changed before
        others and then by difference: ``image``, ``changed``, ``difference``, and each network's best ``label`` and
        ``score``.

    Raises:
        OSError, ValueError: for a network or photos that cannot be read, networks of other classes or another input,
            outputs that are not finite, or no images.
    """
    one, other = both = [open_classifier(network, **opening) for network in (first, second)]
    check_alike(one, other)
    paths = photos if isinstance(photos, Listing) else find_images(photos, skipped)
    difference, total, count, worst = Difference(one.multi_label), 0.0, 0, []
    order, known = None, []
    for files, *pixels in pairs_of_batches(one, other, with_progress(paths, 'photos', len(paths)), skipped):
        outputs = [np.float32(classifier.outputs(images)) for classifier, images in zip(both, pixels)]
        if order is None:
            order = common_order(one, other, outputs)
            known = labels(one.classes or other.classes, outputs[0].shape[1])
        outputs[1] = outputs[1][:, order]
        scores = [classifier.scores(values) for classifier, values in zip(both, outputs)]
        logits = one.gives_logits and other.gives_logits
        expected, found = outputs if logits else scores
        changed = difference.add(torch.from_numpy(expected), torch.from_numpy(found), (one.path, other.path))
        apart = np.abs(np.float64(found) - np.float64(expected))
        total, count = total + float(apart.sum()), count + apart.size
        for number, file in enumerate(files):
            best = [dict(label=as_text(known[int(s[number].argmax())]), score=float(s[number].max())) for s in scores]
            what = dict(image=as_text(file), changed=bool(changed[number]), difference=float(apart[number].max()))
            entry = dict(what, first=best[0], second=best[1])
            worst = heapq.nlargest(WORST, [*worst, entry], key=lambda entry: (entry['changed'], entry['difference']))
    return dict(
        first=one.path,
        second=other.path,
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


def common_order(first: Classifier, second: Classifier, outputs: Sequence[np.ndarray]) -> list[int]:
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
    first: Classifier, second: Classifier, paths: Iterable[Path], skipped: list[str] | None
) -> Iterator[tuple[list[Path], np.ndarray, np.ndarray]]:
    """Files, and their pixels as each of two networks takes them."""
    one, other = first.preprocessing, second.preprocessing
    are_alike = one.pipeline == other.pipeline and one.to_rgb == other.to_rgb
    for files, pixels in in_batches(one.read(paths, skipped), BATCH):
        yield files, pixels, pixels if are_alike else np.stack([image for _, image in other.read(files, [])])


def describe(report: dict) -> str:
    """A report of :func:`compare_files` as lines for the console."""
    lines = [
        f'{report["num_images"]} images: {report["changed_predictions"]} predictions changed; {report["outputs"]} '
        f'differ by {report["max_abs_diff"]:.1e} at most and {report["mean_abs_diff"]:.1e} in the mean, '
        f'relative to the largest of an image by {report["max_rel_diff"]:.1e} at most'
    ]
    for entry in report['worst'] if report['max_abs_diff'] else ():
        one, other = (f'{best["score"]:.1%} {printable(best["label"])}' for best in (entry['first'], entry['second']))
        changed = ' (changed)' if entry['changed'] else ''
        lines.append(f'  {entry["difference"]:.1e}  {printable(entry["image"])}: {one}; {other}{changed}')
    return '\n'.join(lines)
