"""The config of a fine-tuning run as text: short, over our bases, with every value that follows from the choices."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...arch import resolve_arch, stage_widths
from ...files import home
from .photos import PhotoList, Photos
from .recipe import Recipe

BASES = ('models/mobileone_{arch}.py', 'datasets/photos.py', 'schedules/finetune_20e.py', 'default_runtime.py')
BASE_FOLDER = '_base_'  # of a run: copies of the bases, so that it depends on no other folder
WIDTH = 110  # characters of a line
SIZE, CROPS = 224, (0.35, 1.0)  # of the bases: pixels, and the share of a photo that is seen


@dataclass(frozen=True)
class Choices:
    """What the config is written from, beside the photos and the recipe.

    Attributes:
        command: the line that wrote it, for the reader.
        weights: a file or name to start from; None for random weights.
        form: ``'fused'`` or ``'branched'``: the network that is trained.
        size: of the images in pixels.
        freeze: as ``frozen_stages``; -1 for none.
        balance: the threshold of ``ClassBalancedDataset``; None without it.
        patience: validations without a better one before the run stops; None to go to the end.
    """

    command: str
    arch: str
    weights: str | None
    form: str
    size: int
    seed: int
    freeze: int = -1
    balance: float | None = None
    patience: int | None = None
    workers: int = 2
    gpu: bool = False


class Code(str):
    """Python that stands in a config as it is."""


def config_text(photos: Photos, recipe: Recipe, choices: Choices, work_dir: Path) -> str:
    """The config as a Python file; ``work_dir`` (absolute) has the annotation files and will have ``run``."""
    lists = {name: _loader(name, photos, part, recipe, choices, work_dir) for name, part in photos.lists().items()}
    settings = dict(
        classes=list(photos.classes),
        model=_model(photos, choices),
        train_dataloader=lists['train'],
        val_dataloader=lists['val'],
        test_dataloader=lists.get('test', Code('val_dataloader')),
        **_evaluators(photos),
        **_schedule(recipe, choices),
        **_hooks(photos, recipe, choices),
        load_from=choices.weights,
        randomness=dict(seed=choices.seed),
        work_dir=_beside(work_dir, 'run'),
    )
    bases = [f'{BASE_FOLDER}/{base.format(arch=choices.arch)}' for base in BASES]
    lines = (f'{name} = {as_python(value)}\n' for name, value in dict(_base_=bases, **settings).items())
    return _docstring(photos, choices, work_dir / 'config.py') + '\n' + ''.join(lines)


def as_python(value: Any, column: int = 0) -> str:
    """``value`` as Python, a long dict or list with a line for each item.

    Args:
        column: in which the line begins that it stands in.
    """
    if isinstance(value, Code):
        return value
    if not isinstance(value, dict | list):
        return _plain(repr(value))
    opening, closing = ('dict(', ')') if isinstance(value, dict) else ('[', ']')
    pairs = [(f'{key}=', item) for key, item in value.items()] if isinstance(value, dict) else [('', i) for i in value]
    items = [key + as_python(item, column + 4) for key, item in pairs]
    line = f'{opening}{", ".join(items)}{closing}'
    if column + len(line) <= WIDTH and '\n' not in line:
        return line
    pad = ' ' * (column + 4)
    return opening + '\n' + ''.join(f'{pad}{item},\n' for item in items) + ' ' * column + closing


def base_files(arch: str) -> dict[str, str]:
    """The text of each base, by its path in the folder of the config."""
    source = home() / 'configs' / '_base_'
    names = (BASES[0].format(arch='s0'), *(name.format(arch=arch) for name in BASES))  # s0 is the base of the others
    return {f'{BASE_FOLDER}/{name}': (source / name).read_text(encoding='utf-8') for name in names}


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


def _docstring(photos: Photos, choices: Choices, path: Path) -> str:
    measured = photos.test or photos.val
    text = (
        f'MobileOne-{choices.arch.upper()} on {len(photos.train.photos)} photos of {len(photos.classes)} classes; '
        f'measured on {len(measured.photos)} others.\n\n'
        f'Written by: {choices.command}\n'
        f'Train by it: python tools/train.py {path}\n'
    )
    return '"""' + _plain(text.replace('\\', '\\\\').replace('"""', "'''")) + '"""\n'


def _plain(text: str) -> str:
    """A string in Python, ``text``, without the braces that mmengine would take for one of its variables."""
    return text.replace('{{', '{\\x7b')


def _beside(folder: Path, name: str) -> str:
    """The path of ``name`` in the config's ``folder``: by mmengine's variable, so that it may be moved."""
    if any(part in str(folder) for part in ('\\', '"""', '{{')):  # which mmengine would change, or Python
        return str(folder / name)
    return Code(f'r"""{{{{ fileDirname }}}}/{name}"""')


def _model(photos: Photos, choices: Choices) -> dict:
    count, backbone = len(photos.classes), {}
    if choices.form == 'fused':
        backbone['deploy'] = True
    if choices.freeze >= 0:
        backbone['frozen_stages'] = choices.freeze
    model = dict(backbone=backbone) if backbone else {}
    if not photos.multi_label:
        head = dict(num_classes=count, topk=top_ks(count))
        return dict(model, data_preprocessor=dict(num_classes=count), head=head)
    head = dict(
        _delete_=True,
        type='MultiLabelLinearClsHead',
        num_classes=count,
        in_channels=stage_widths(resolve_arch(choices.arch))[-1],
        loss=dict(type='CrossEntropyLoss', use_sigmoid=True),
    )
    return dict(model, data_preprocessor=dict(num_classes=count, to_onehot=True), head=head)


def _loader(name: str, photos: Photos, part: PhotoList, recipe: Recipe, choices: Choices, work_dir: Path) -> dict:
    train = name == 'train'
    dataset = dict(type='MultiLabelDataset') if photos.multi_label else {}
    dataset.update(
        data_root=str(part.root),
        ann_file=_beside(work_dir, annotation_name(name, photos.multi_label)),
        metainfo=Code('dict(classes=classes)'),
    )
    balanced = train and choices.balance
    if choices.size != SIZE or balanced:
        dataset['pipeline'] = _pipeline(choices.size, train)
    if balanced:
        dataset = dict(
            _delete_=True,
            type='ClassBalancedDataset',
            oversample_thr=choices.balance,
            dataset={'type': 'CustomDataset', **dataset},
        )
    loader = dict(batch_size=recipe.batch_size if train else max(recipe.batch_size, 32), num_workers=choices.workers)
    if not choices.workers:
        loader['persistent_workers'] = False
    if choices.gpu:
        loader['pin_memory'] = True
    if train and recipe.drop_last:  # the last batch would be a single photo
        loader['drop_last'] = True
    return dict(loader, dataset=dataset)


def _pipeline(size: int, train: bool) -> list[dict]:
    own = 'mobileone_ext'
    if train:
        steps = [
            dict(type=f'{own}.LoadImageFromFile', lazy=True),
            dict(type=f'{own}.RandomResizedCrop', scale=size, crop_ratio_range=CROPS, backend='pillow'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        ]
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


def _schedule(recipe: Recipe, choices: Choices) -> dict:
    epochs, warm_up = recipe.epochs, recipe.warm_up
    steps = dict(by_epoch=True, convert_to_iter_based=True)
    cosine = dict(type='CosineAnnealingLR', T_max=round(epochs - warm_up, 5), begin=warm_up, end=epochs, **steps)
    linear = dict(type='LinearLR', start_factor=0.001, begin=0, end=warm_up, **steps)
    optimizer = dict(optimizer=dict(lr=recipe.lr))
    if choices.weights is None:
        optimizer['paramwise_cfg'] = Code("dict(custom_keys={'head.': dict(lr_mult=1.0)})")
    return dict(
        optim_wrapper=optimizer,
        param_scheduler=[linear, cosine] if warm_up else [cosine],
        train_cfg=dict(max_epochs=epochs),
    )


def _hooks(photos: Photos, recipe: Recipe, choices: Choices) -> dict:
    best = 'multi-label/mAP' if photos.multi_label else 'accuracy/top1'
    default_hooks = dict(
        logger=dict(interval=max(1, min(50, recipe.steps_per_epoch // 4))),
        checkpoint=dict(save_best=best, rule='greater', max_keep_ckpts=1),
    )
    hooks = []
    if recipe.ema_momentum:
        hooks.append(dict(type='EMAHook', momentum=recipe.ema_momentum, update_buffers=True, priority='ABOVE_NORMAL'))
    if choices.patience is not None:
        hooks.append(dict(type='EarlyStoppingHook', monitor=best, rule='greater', patience=choices.patience))
    return dict(default_hooks=default_hooks, **(dict(custom_hooks=hooks) if hooks else {}))
