"""The report of a fine-tuning run: report.md with pictures, report.json for programs."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
from mmengine.config import Config

from ... import cli
from ...checkpoints.load import load_weights
from ...data.pixels import Preprocessing
from ...files import write_atomically, write_text
from ...pictures import legend
from ...provenance import machine
from ...text import as_markdown, code, markdown_table, printable
from ..metrics import draw_matrix
from ..photo_page import Looks, uncertainty
from ..train import latest_checkpoint
from . import calibration, pictures
from .curves import Curve, read_curves
from .scores import Scores, by_class, confusion

REPORT, DATA, PAGE, PHOTOS = 'report.md', 'report.json', 'report.html', 'photos.csv'
MAX_CLASSES = 60  # in the picture of the confusion matrix


def make_report(
    config: Config,
    folder: Path,
    checkpoint: str,
    deployed: dict,
    metrics: dict,
    before: Scores,
    after: Scores,
    looks: Looks,
    notes: list[str],
) -> dict:
    """Everything that report.md says, as plain data.

    Args:
        folder: of the run.
        checkpoint: that was deployed.
        deployed: the report of :func:`mobileone_ext.deploy.reparam.convert`.
        metrics: of the trained network on the test set.
        before, after: scores of the trained network and of the file to deploy.
        looks: of :func:`look_at_photos`.
        notes: about the photos.
    """
    size, _ = Preprocessing(config).image_size
    multi_label = after.multi_label
    monitor = 'multi-label/mAP' if multi_label else 'accuracy/top1'
    right = [(result.truth == result.predicted).all(1).mean() * 100 for result in (before, after)]
    num_train, counts = len(looks.trained), Counter(label for _, labels in looks.trained for label in labels)
    ((largest, _),) = counts.most_common(1)
    return dict(
        folder=str(folder),
        classes=list(after.classes),
        multi_label=multi_label,
        num_images=len(after.paths),
        num_train=num_train,
        checkpoint=checkpoint,
        right_before=float(right[0]),
        right_after=float(right[1]),
        chance=float(after.truth[:, largest].mean() * 100),
        changed_predictions=int((before.predicted != after.predicted).any(1).sum()),
        trained_fused=load_weights(checkpoint).form == 'fused',
        deployed=deployed,
        metrics=metrics,
        per_class=[vars(row) for row in by_class(after)],
        confusion=None if multi_label else confusion(after).tolist(),
        curves=read_curves(latest_checkpoint(folder / 'run')[1], monitor),
        notes=notes,
        size=size,
        megabytes=(folder / 'fused.pth').stat().st_size / 1e6,
        machine=machine('torch', 'mmengine', 'mmpretrain'),
        commands=next_commands(after.paths[0], size, num_train, multi_label),
    )


def next_commands(photo: str, size: int, num_photos: int, multi_label: bool) -> list[tuple[str, str]]:
    """What to do next, and the command line that does it in the run's folder, quoted for a shell."""
    form = ('--image-size', size, '--normalize', *(() if multi_label else ('--softmax',)))
    evaluate, scores = ((), 'logits') if multi_label else (('--evaluate',), 'probabilities')
    calibration = ('--num-images', min(200, num_photos))
    return [
        ('Name what is on photos', cli.tool_command('predict', 'fused.pth', os.path.abspath(photo))),
        (
            f'A file for a phone or a server (ONNX): pixels 0..255 in, {scores} out',
            cli.tool_command('export', 'fused.pth', 'model.onnx', *form),
        ),
        (
            'The same in int8, calibrated with the photos that it was trained on',
            cli.tool_command('quantize', 'fused.pth', 'model_int8.onnx', *calibration, *form, *evaluate),
        ),
        ('Measure again', cli.tool_command('test', 'fused.pth', '--out', 'metrics.json')),
    ]


def write_report(report: dict, result: Scores, folder: Path) -> None:
    """Write report.json, the pictures and report.md into ``folder``."""
    curves = {name: Curve(*curve) for name, curve in report['curves'].items()}
    drawn = []
    if not result.multi_label and len(result.classes) <= MAX_CLASSES:
        draw_matrix(np.array(report['confusion'], dtype=float), result.classes, folder / 'confusion.png')
        drawn.append('confusion')
    if (result.predicted != result.truth).any():
        with write_atomically(folder / 'mistakes.png') as part:
            pictures.draw_mistakes(result, part)
        drawn.append('mistakes')
    if curves:
        pictures.draw_curves(curves, folder / 'curves.png')
        drawn.append('curves')
    write_text(json.dumps(report, indent=2) + '\n', folder / DATA)
    write_text(markdown(report, drawn), folder / REPORT)


def chance(report: dict) -> str:
    """What a network that never looks would have right."""
    if report['multi_label']:
        return ''
    return f'Chance: {report["chance"]:.1f} % for always naming the most frequent class of the photos to learn from.'


def which_epoch(report: dict) -> str:
    """Which of a run's checkpoints was taken."""
    name = Path(report['checkpoint']).name
    if name.startswith('best'):
        return f'Taken: {name}, the best on these photos, so expect a little less on others.'
    return f'Taken: {name}, the last.'


def fusion(report: dict) -> str:
    """What fusing did to predictions."""
    count, changed = report['num_images'], report['changed_predictions']
    if report['trained_fused']:
        return (
            'The network was trained in its fused form, so there was nothing to fuse; '
            f'the written file, read back, changes {changed} of {count} predictions.'
        )
    return f'Fusing changed {changed} of {count} predictions.'


def facts(report: dict) -> list[tuple[str, str]]:
    """Size and speed of what was written."""
    deployed = report['deployed']
    return [
        ('file to deploy', f'fused.pth, {report["megabytes"]:.1f} MB'),
        ('parameters', f'{deployed["params_after"]:,}'),
        (f'multiply-adds at {report["size"]} px', f'{deployed["multiply_adds_after"]:,}'),
        ('latency of one photo, this machine', f'{deployed["latency_ms_after"]:.1f} ms'),
        ('machine', report['machine']),
    ]


def markdown(report: dict, drawn: list[str]) -> str:
    """The text of report.md; ``drawn`` are the pictures that there are."""
    count = report['num_images']
    what = 'all labels right' if report['multi_label'] else 'top-1'
    parts = [
        f'# {len(report["classes"])} classes, {report["num_train"]} photos to learn from, {count} to measure on',
        f'**{what}: {report["right_after"]:.1f} %** of {count} photos ({uncertainty(report["right_after"], count)}); '
        f'before fusion {report["right_before"]:.1f} %. {fusion(report)}',
        ' '.join(line for line in (chance(report), which_epoch(report)) if line),
        f'Every photo with its scores: [{PAGE}]({PAGE}), which a browser opens, and {PHOTOS}.',
        markdown_table(('', ''), facts(report)),
    ]
    if report['multi_label']:
        shown = {name: value for name, value in report['metrics'].items() if isinstance(value, float)}
        parts.append(', '.join(f'{name.split("/")[-1]} {value:.1f}' for name, value in shown.items()))
    if report['notes']:
        parts += [
            'What was left out, or should be known:',
            '\n'.join(f'- {as_markdown(note)}' for note in report['notes']),
        ]
    parts.append(f'License: {as_markdown(report["license"])}. The same network for timm and transformers is in hub/.')
    parts += ['## Classes', class_table(report['per_class'])]
    if report['confusion'] and 'confusion' in drawn:
        parts.append('![which class was taken for which](confusion.png)')
    elif report['confusion']:
        parts.append(f'The confusion matrix of so many classes is in {DATA}.')
    numbers = legend(report['classes'])
    if numbers and drawn:
        parts.append(f'In the pictures, numbers stand for names that no font here has: {as_markdown(numbers)}.')
    parts.append('## Worst mistakes')
    parts.append('![worst mistakes](mistakes.png)' if 'mistakes' in drawn else 'There were none.')
    if 'curves' in drawn:
        parts += [
            '## Curves',
            '![loss, learning rate of the backbone, accuracy](curves.png)',
            f'All of them: {code("tensorboard --logdir run")}',
        ]
    if 'calibration' in report:
        told = calibration.sentences(report['calibration'], report['classes'])
        parts += ['## Scores', ' '.join(map(as_markdown, told))]
    parts += ['## Next', 'In this folder, wherever it lies:']
    parts += [f'{title}:\n\n    {printable(command)}' for title, command in report['commands']]
    return '\n\n'.join(parts) + '\n'


def class_table(rows: list[dict]) -> str:
    """Markdown: a line a class, its photos, how many of them are right, and how many of those named so are right."""

    def shown(value: float | None) -> str:
        return '-' if value is None else f'{value:.1f} %'

    return markdown_table(
        ('class', 'photos', 'found', 'right of those named so'),
        ((row['name'], row['count'], shown(row['recall']), shown(row['precision'])) for row in rows),
    )
