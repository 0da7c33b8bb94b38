"""The config of a fine-tuning run as text: our bases and every value that follows from the choices, in one file."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from ...arch import resolve_arch, stage_widths
from ...files import home
from .photos import PhotoList, Photos
from .plan import RANDOM, Plan

BASES = ('models/mobileone_{arch}.py', 'datasets/photos.py', 'schedules/finetune_20e.py', 'default_runtime.py')
WIDTH = 110  # characters of a line
_HEAD = '_base_ = []  # all of it is here\n\nimport os\n\n'  # mmengine takes an import before _base_ for its other kind
SIZE, CROPS = 224, (0.35, 1.0)  # of the bases: pixels, and the share of a photo that is seen
NORM_ALONE = dict(num_conv_branches=1, use_skip=False, use_scale=False)  # of a backbone
SPARE = 1.5  # times the size, out of which a training crop of a padded or squashed photo is cut


class Code(str):
    """Python that stands in a config as it is."""


def config_text(plan: Plan) -> str:
    """The config as a Python file that needs no other; the folder of ``plan`` has the annotation files.

    Photos that are not where they were are looked for where they lay from that folder, so that both may move together.
    """
    photos, options = plan.photos, plan.options
    lists = {name: _loader(name, part, plan) for name, part in photos.lists().items()}
    settings = dict(
        model=_model(plan),
        train_dataloader=lists['train'],
        val_dataloader=lists['val'],
        test_dataloader=lists.get('test', Code('val_dataloader')),
        **_evaluators(photos),
        **_schedule(plan),
        **_hooks(plan),
        load_from=None if options.weights == RANDOM else options.weights,
        randomness=dict(seed=options.seed),
        work_dir=_beside(options.folder, 'run'),
    )
    values: dict = dict(classes=list(photos.classes))
    for base in BASES:
        values |= Config.fromfile(home() / 'configs' / '_base_' / base.format(arch=options.arch)).to_dict()
    values = Config._merge_a_into_b(settings, values)
    lines = (f'{name} = {as_python(value)}\n' for name, value in values.items())
    return _docstring(plan) + _HEAD + _places(plan) + ''.join(lines)


def as_python(value: Any, column: int = 0) -> str:
    """``value`` as Python, a long dict or list with a line for each item.

    Args:
        column: in which the line begins that it stands in.
    """
    if isinstance(value, Code):
        return value
    if not isinstance(value, dict | list):
        return _plain(repr(value))
    named = isinstance(value, dict) and all(key.isidentifier() for key in value)
    opening, closing = ('dict(', ')') if named else ('{', '}') if isinstance(value, dict) else ('[', ']')
    pairs = [('', item) for item in value]
    if isinstance(value, dict):
        pairs = [(f'{key}=' if named else f'{key!r}: ', item) for key, item in value.items()]
    items = [key + as_python(item, column + 4) for key, item in pairs]
    line = f'{opening}{", ".join(items)}{closing}'
    if column + len(line) <= WIDTH and '\n' not in line:
        return line
    pad = ' ' * (column + 4)
    return opening + '\n' + ''.join(f'{pad}{item},\n' for item in items) + ' ' * column + closing


def annotation_files(photos: Photos) -> dict[str, str]:
    """The text of each annotation file, by file name: ``path number`` lines, or JSON for several labels."""
    numbers = {name: index for index, name in enumerate(photos.classes)}
    files = {}
    for name, part in photos.lists().items():
        if photos.multi_label:
            rows = [dict(img_path=p.path, gt_label=sorted(numbers[label] for label in p.labels)) for p in part.photos]
            text = json.dumps(dict(metainfo=dict(classes=list(photos.classes)), data_list=rows), indent=1)
        else:
            text = '\n'.join(f'{_unstripped(photo.path)} {numbers[photo.labels[0]]}' for photo in part.photos)
        files[annotation_name(name, photos.multi_label)] = text + '\n'
    return files


def _unstripped(path: str) -> str:
    """``path`` at the start of a line, off which a data set strips white space."""
    return f'./{path}' if path[0].isspace() else path


def annotation_name(name: str, multi_label: bool) -> str:
    return f'{name}.json' if multi_label else f'{name}.txt'


def top_ks(num_classes: int) -> tuple[int, ...]:
    """Top-1, and top-5 where it says something."""
    return (1, 5) if num_classes > 5 else (1,)


def _docstring(plan: Plan) -> str:
    photos = plan.photos
    measured = photos.test or photos.val
    text = (
        f'MobileOne-{plan.options.arch.upper()} on {len(photos.train.photos)} photos of {len(photos.classes)} classes; '
        f'measured on {len(measured.photos)} others.\n\n'
        f'Written by: {plan.command}\n'
        'Train by it, in its folder: python -m mobileone_ext train config.py\n'
    )
    return '"""' + _plain(text.replace('\\', '\\\\').replace('"""', "'''")) + '"""\n'


def _plain(text: str) -> str:
    """A string in Python, ``text``, without the braces that mmengine would take for one of its variables."""
    return text.replace('{{', '{\\x7b')


def _beside(folder: Path, name: str) -> str:
    """The path of ``name`` from the config's ``folder``: by mmengine's variable, so that it may be moved."""
    if any(part in f'{folder}/{name}' for part in ('\\', '"""', '{{')):  # which mmengine would change, or Python
        return str(folder / name)
    return Code(f'r"""{{{{ fileDirname }}}}/{name}"""')


def _places(plan: Plan) -> str:
    """The roots of the lists, each by the name of the first list that has it, and where else it is looked for."""
    lines = ''
    for root, name in _names_of_roots(plan.photos).items():
        lines += f'{name} = {_plain(repr(str(root)))}\n'
        moved = _beside(plan.options.folder, os.path.relpath(root, plan.options.folder))
        if isinstance(moved, Code):
            lines += f'if not os.path.isdir({name}):  # moved together with this folder\n'
            lines += f'    {name} = os.path.normpath({moved})\n'
    return lines


def _names_of_roots(photos: Photos) -> dict[Path, str]:
    roots = {part.root: f'{name}_photos' for name, part in reversed(photos.lists().items())}
    return {photos.train.root: 'photos', **{root: name for root, name in roots.items() if root != photos.train.root}}


def _model(plan: Plan) -> dict:
    count = len(plan.photos.classes)
    backbone: dict = {}
    if plan.form == 'fused':
        backbone['deploy'] = True
    if plan.form == 'norm':
        backbone.update(NORM_ALONE)
    if plan.options.freeze >= 0:
        backbone['frozen_stages'] = plan.options.freeze
    model = dict(backbone=backbone) if backbone else {}
    if not plan.photos.multi_label:
        head = dict(num_classes=count, topk=top_ks(count))
        return dict(model, data_preprocessor=dict(num_classes=count), head=head)
    head = dict(
        _delete_=True,
        type='MultiLabelLinearClsHead',
        num_classes=count,
        in_channels=stage_widths(resolve_arch(plan.options.arch))[-1],
        loss=dict(type='CrossEntropyLoss', use_sigmoid=True),
    )
    return dict(model, data_preprocessor=dict(num_classes=count, to_onehot=True), head=head)


def _loader(name: str, part: PhotoList, plan: Plan) -> dict:
    photos, recipe, size, train = plan.photos, plan.recipe, plan.options.size, name == 'train'
    dataset = dict(type='MultiLabelDataset') if photos.multi_label else {}
    dataset.update(
        data_root=Code(_names_of_roots(photos)[part.root]),
        ann_file=_beside(plan.options.folder, annotation_name(name, photos.multi_label)),
        metainfo=Code('dict(classes=classes)'),
    )
    balanced = train and plan.threshold
    if size != SIZE or balanced or plan.options.fit != 'crop':
        dataset['pipeline'] = _pipeline(size, train, plan.options.fit)
    if balanced:
        dataset = dict(
            _delete_=True,
            type='ClassBalancedDataset',
            oversample_thr=plan.threshold,
            dataset={'type': 'CustomDataset', **dataset},
        )
    loader = dict(batch_size=recipe.batch_size if train else max(recipe.batch_size, 32), num_workers=plan.workers)
    if not plan.workers:
        loader['persistent_workers'] = False
    if torch.cuda.is_available():
        loader['pin_memory'] = True
    if train and recipe.drop_last:  # the last batch would be a single photo
        loader['drop_last'] = True
    return dict(loader, dataset=dataset)


def _pipeline(size: int, train: bool, fit: str) -> list[dict]:
    own = 'mobileone_ext'
    side = round(SPARE * size) if train else size
    fitted = dict(
        crop=[],
        pad=[dict(type=f'{own}.ResizePad', scale=side, backend='pillow')],
        squash=[dict(type='Resize', scale=(side, side), backend='pillow')],
    )[fit]
    if train:
        steps = [
            dict(type=f'{own}.LoadImageFromFile', **({} if fitted else dict(lazy=True))),
            *fitted,
            dict(type=f'{own}.RandomResizedCrop', scale=size, crop_ratio_range=CROPS, backend='pillow'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        ]
    elif fitted:
        steps = [dict(type=f'{own}.LoadImageFromFile'), *fitted]
    else:
        steps = [
            dict(type=f'{own}.LoadImageFromFile'),
            dict(type='ResizeEdge', scale=round(size * 256 / 224), edge='short', backend='pillow'),
            dict(type='CenterCrop', crop_size=size),
        ]
    return [*steps, dict(type='PackInputs')]


def _evaluators(photos: Photos) -> dict:
    if photos.multi_label:
        metrics = [dict(type='AveragePrecision'), dict(type='MultiLabelMetric')]
    elif top_ks(len(photos.classes)) == (1, 5):
        return {}  # as in the base
    else:
        metrics = dict(type='Accuracy', topk=(1,))
    return dict(val_evaluator=metrics, test_evaluator=Code('val_evaluator'))


def _schedule(plan: Plan) -> dict:
    epochs, warm_up = plan.recipe.epochs, plan.recipe.warm_up
    steps = dict(by_epoch=True, convert_to_iter_based=True)
    cosine = dict(type='CosineAnnealingLR', T_max=round(epochs - warm_up, 5), begin=warm_up, end=epochs, **steps)
    linear = dict(type='LinearLR', start_factor=0.001, begin=0, end=warm_up, **steps)
    optimizer = dict(optimizer=dict(lr=plan.recipe.lr))
    if plan.options.weights == RANDOM:
        optimizer['paramwise_cfg'] = dict(custom_keys={'head.': dict(lr_mult=1.0)})
    return dict(
        optim_wrapper=optimizer,
        param_scheduler=[linear, cosine] if warm_up else [cosine],
        train_cfg=dict(max_epochs=epochs),
    )


def _hooks(plan: Plan) -> dict:
    recipe, patience = plan.recipe, plan.options.early_stop
    best = 'multi-label/mAP' if plan.photos.multi_label else 'accuracy/top1'
    default_hooks = dict(
        logger=dict(interval=max(1, min(50, recipe.steps_per_epoch // 4))),
        checkpoint=dict(save_best=best, rule='greater', max_keep_ckpts=1),
    )
    hooks = []
    if recipe.ema_momentum:
        hooks.append(dict(type='EMAHook', momentum=recipe.ema_momentum, update_buffers=True, priority='ABOVE_NORMAL'))
    if patience is not None:
        hooks.append(dict(type='EarlyStoppingHook', monitor=best, rule='greater', patience=patience))
    return dict(default_hooks=default_hooks, **(dict(custom_hooks=hooks) if hooks else {}))
