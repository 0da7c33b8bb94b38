"""A classifier as a folder of Hugging Face's hub: timm and transformers open it and give what the network gives.

Weights are timm's, in safetensors; ``config.json`` has the keys that timm writes (``models/_hub.py``), which
transformers reads too (TimmWrapper); the card tells what it is.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mmengine.config import Config

from .. import files
from ..backbone import MobileOne
from ..checkpoints.convert import with_branches_by, write_weights
from ..checkpoints.layouts import BACKBONE
from ..checkpoints.load import Weights, without_head
from ..checkpoints.model_card import model_card
from ..checkpoints.names import PUBLISHED, License, license_of, resolve
from ..checkpoints.structure import differences, shapes_of
from ..data.classes import class_names
from ..data.pixels import Preprocessing
from ..metadata import Metadata
from ..text import as_markdown, markdown_table, quoted
from . import fuse
from .compare import relative_difference
from .described import describe, find_network
from .export import DeployNet

WEIGHTS, CONFIG, CARD = 'model.safetensors', 'config.json', 'README.md'
_SAME = 1e-9  # of the largest output, in float64


def convert(
    source: str,
    folder: Path,
    config: str | None = None,
    images: Path | None = None,
    ema: str = 'auto',
    trust: bool = False,
    **calibration: int,
) -> tuple[Weights, Weights]:
    """Write the weights in ``source`` as a hub's folder; arguments and errors as of
    :func:`mobileone_ext.checkpoints.convert.convert`, and of :func:`write_folder`.

    Args:
        config: of a network that does not say which images it takes.
        calibration: ``num_images`` and ``image_size`` of ``images``.
    """
    check_folder(folder)
    network = find_network(source, otherwise=config, trust=trust)
    original = weights = fuse.read_weights(network.config, network.path, ema, trust)
    if images:
        weights = with_branches_by(weights, images, **calibration)
    top1 = {'top-1 on ImageNet': PUBLISHED[source].top1} if source in PUBLISHED else {}
    write_folder(folder, network.config, weights, original, network.path, license_of(source), top1)
    return original, weights


def check_folder(folder: Path) -> None:
    """Raise ValueError or OSError unless ``folder`` can be written: new, or one that this module wrote."""
    files.check_writable(folder / CARD if folder.is_dir() else folder)
    if folder.is_file() or (folder.is_dir() and {entry.name for entry in folder.iterdir()} - {WEIGHTS, CONFIG, CARD}):
        raise ValueError(f'{folder}: is there already and is no hub folder; name another')


def write_folder(
    folder: Path,
    config: Config,
    weights: Weights,
    original: Weights,
    source: str,
    terms: License,
    metrics: Mapping[str, float],
) -> None:
    """Write the folder, whole or not at all.

    Args:
        config: of the network: how photos are prepared, and its classes.
        weights: with branches.
        original: as they were in the file ``source``.
        metrics: percent, by name.

    Raises:
        ValueError: for a network that timm does not build, or photos that it does not prepare like that.
        OSError: if the folder cannot be written.
    """
    check_network(config, weights)
    names = class_names(config, weights.classes, weights.published)
    said = describe(Preprocessing(config), names, source, weights.said)
    settings = hub_config(said, weights)
    with files.staging_folder(folder) as stage:
        (stage / folder.name).mkdir()
        path = stage / folder.name / WEIGHTS
        write_weights(path, replace(weights, said=replace(said, others={})), 'timm')
        files.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + '\n', path.with_name(CONFIG))
        note = None if weights is original else 'given branches that add nothing, see docs/checkpoints.md'
        table = model_card(path, 'timm', weights, resolve(source), original, note, terms.text)
        files.write_text(card(folder.name, said, terms, metrics, table), path.with_name(CARD))


def check_network(config: Config, weights: Weights) -> None:
    """Raise ValueError unless timm builds the network of ``config`` with the parts that ``weights`` have."""
    structure = weights.structure
    if structure is None or structure.variant is None or structure.form == 'fused':
        remedy = '; --branched --images DIR gives it branches' if structure and structure.variant else ''
        raise ValueError(f'{weights.name}: timm builds MobileOne-S0 .. S4 with branches, not {structure}{remedy}')
    plain = MobileOne(structure.variant, structure.in_channels).eval()
    state = {key.removeprefix(BACKBONE): tensor for key, tensor in without_head(weights.state).items()}
    problems = differences(shapes_of(plain.state_dict()), shapes_of(state))
    if problems:
        raise ValueError(f"{weights.name}: timm's MobileOne-{structure.variant.upper()} differs: {'; '.join(problems)}")
    plain.load_state_dict(state)
    model = fuse.load_model(config, weights)
    if not DeployNet(model).is_pooled or not relative_difference(model.backbone, plain) <= _SAME:
        raise ValueError(f"{weights.name}: its config's network is more than timm's: activations, norms, neck or head")


def hub_config(said: Metadata, weights: Weights) -> dict:
    """The content of config.json.

    Raises:
        ValueError: for photos that timm does not prepare like that.
    """
    height, width = said.size or (0, 0)
    structure, mode = weights.structure, dict(squash='squash', pad='border').get(said.fit, 'center')
    fits = mode != 'center' or (said.fit == 'crop' and height == width)
    if not fits or said.channels != 'RGB' or said.backend != 'pillow':
        raise ValueError(
            f'{weights.name}: timm resizes and crops RGB photos to a square by Pillow, the test pipeline does otherwise'
        )
    convs = [f'stem.conv_kxk.{index}.conv' for index in range(structure.num_conv_branches[0])]
    return dict(
        architecture=f'mobileone_{structure.variant}',
        num_classes=len(said.labels),
        label_names=list(said.labels),
        **(dict(problem_type='multi_label_classification') if said.labels_of_an_image else {}),
        **{name: value for name, value in said.values().items() if name in ('temperature', 'threshold')},
        pretrained_cfg=dict(
            input_size=[3, height, width],
            interpolation=said.interpolation,
            crop_pct=_share(height, said.edge) if mode == 'center' else 1.0,
            crop_mode=mode,
            mean=[value / 255 for value in said.mean],
            std=[value / 255 for value in said.std],
            first_conv=[*convs, 'stem.conv_scale.conv'],
            classifier='head.fc',
        ),
    )


def _how_sure(said: Metadata) -> str:
    """What the card tells of temperature and threshold, which timm and transformers leave to the caller."""
    if not said.temperature:
        return ''
    below = '; what is below its `threshold` is none of the classes' if said.threshold is not None else ''
    return f'\nScores are calibrated where logits are divided by `temperature` of config.json before softmax{below}.\n'


def _share(side: int, edge: int) -> float:
    """``side / edge`` as timm needs it, who divides ``side`` by it and rounds down."""
    return next(share for share in (side / edge, side / edge - 1e-6) if math.floor(side / share) == edge)


def card(name: str, said: Metadata, terms: License, metrics: Mapping[str, float], table: str) -> str:
    """The content of README.md; ``table`` is that of :func:`model_card`."""
    figures = markdown_table(('', 'percent'), [(what, f'{value:.2f}') for what, value in metrics.items()])
    names = as_markdown(quoted(said.labels, 20))
    return f"""---
tags: [image-classification, timm, transformers]
pipeline_tag: image-classification
library_name: timm
{terms.tags}---
# {as_markdown(name)}

Images of {said.size[1]} x {said.size[0]} pixels in; {len(said.labels)} classes: {names}.

{figures if metrics else 'It was not measured here.'}

## Use

    import timm
    model = timm.create_model('local-dir:FOLDER', pretrained=True).eval()

    from transformers import pipeline
    pipeline('image-classification', model='FOLDER')('photo.jpg')

FOLDER is this folder; a repository of the hub is `hf-hub:USER/NAME` to timm and `USER/NAME` to transformers.
{_how_sure(said)}
#{table}"""
