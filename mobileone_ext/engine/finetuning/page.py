"""The report of a fine-tuning run as a page: report.html, and photos.csv."""

import copy
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from ...checkpoints.load import load_weights
from ...data.nested import innermost
from ...data.pixels import Preprocessing
from ...deploy import fuse
from ...metadata import fit_of
from ...text import printable
from ..features import features_of, look
from ..photo_page import Looks, uncertainty, write_photo_list, write_photo_page
from . import calibration
from .report import PAGE, PHOTOS, chance, facts, fusion, which_epoch
from .scores import Scores
from .suspects import near_duplicates


def look_at_photos(config: Config, checkpoint: str) -> Looks:
    """Where the network in ``checkpoint`` looks on measured photos, and near-duplicates among all.

    Each photo goes through the network once, as in testing.
    """
    model = fuse.load_model(config, load_weights(checkpoint)).to(get_device())
    own, levels = look(model, Runner.build_dataloader(config.test_dataloader))
    loader = copy.deepcopy(config.test_dataloader)
    trained = copy.deepcopy(next(innermost(config.train_dataloader.dataset)))
    loader.dataset = dict(trained, pipeline=config.test_dataloader.dataset.pipeline)
    built = Runner.build_dataloader(loader)
    _, features = features_of(model, built)
    labels = [built.dataset.get_data_info(index) for index in range(len(built.dataset))]
    return Looks(
        levels,
        fit_of(Preprocessing(config).pipeline),
        near_duplicates(np.concatenate([own, features])),
        [(info['img_path'], np.ravel(info['gt_label']).tolist()) for info in labels],
    )


def write_html(report: dict, result: Scores, looks: Looks, folder: Path) -> None:
    """Write report.html and photos.csv into ``folder``; ``report['calibration']`` is shown where it is there."""
    count, scores = report['num_images'], report.get('calibration')
    across = sum(pair.first < count <= pair.second for pair in looks.pairs)
    apart = f'{len(looks.pairs)} pairs' if looks.pairs else 'None were found'
    texts = dict(
        title=f'{len(report["classes"])} classes, {report["num_train"]} photos to learn from, {count} to measure on',
        figure=f'{report["right_after"]:.1f} %',
        sentence=f'of {count} photos {"have all labels right" if report["multi_label"] else "right"} '
        f'({uncertainty(report["right_after"], count)})',
        lines=[line for line in (chance(report), which_epoch(report), fusion(report)) if line],
        facts=[*facts(report), ('license', report['license'])],
        notes=[printable(note) for note in report['notes']],
        pairs=f"{apart} by the network's own features, {across} of them between photos to train on and to measure on. "
        'A photo that was trained on tells nothing when it is measured; one of a kind is enough to learn from.',
        calibration=calibration.sentences(scores, report['classes']) if scores else (),
        commands=[(title, printable(command)) for title, command in report['commands']],
    )
    write_photo_list(result, folder / PHOTOS)
    write_photo_page(folder / PAGE, result, texts, looks, curves=report['curves'], calibration=scores)
