"""The config of a fine-tuning run as text: short, over our bases, with every value that follows from the choices."""

import json
import pprint
from dataclasses import dataclass
from pathlib import Path

from ...arch import resolve_arch, stage_widths
from ...files import home
from .photos import PhotoList, Photos
from .recipe import Recipe

BASES = ('models/mobileone_{arch}.py', 'datasets/photos.py', 'schedules/finetune_20e.py', 'default_runtime.py')
BASE_FOLDER = '_base_'  # of a run: copies of the bases, so that it depends on no other folder
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


def config_text(photos: Photos, recipe: Recipe, choices: Choices, work_dir: Path) -> str:
    """The config as a Python file; ``work_dir`` (absolute) has the annotation files and will have ``run``."""
    parts = [
        _docstring(photos, choices, work_dir / 'config.py'),
        _bases(choices.arch),
        f'classes = {_plain(pprint.pformat(list(photos.classes), width=100, compact=True))}',
        _model(photos, choices),
        _loader('train', photos, photos.train, recipe, choices, work_dir),
        _loader('val', photos, photos.val, recipe, choices, work_dir),
        _loader('test', photos, photos.test, recipe, choices, work_dir)
        if photos.test
        else 'test_dataloader = val_dataloader',
        _evaluator(photos),
        _schedule(recipe, choices),
        _hooks(photos, recipe, choices),
        f"""load_from = {_plain(repr(choices.weights))}
randomness = dict(seed={choices.seed})
work_dir = {_beside(work_dir, 'run')}""",
    ]
    return '\n'.join(part for part in parts if part) + '\n'


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


def _bases(arch: str) -> str:
    lines = ''.join(f"    '{BASE_FOLDER}/{base.format(arch=arch)}',\n" for base in BASES)
    return f'_base_ = [\n{lines}]\n'


def _plain(text: str) -> str:
    """A string in Python, ``text``, without the braces that mmengine would take for one of its variables."""
    return text.replace('{{', '{\\x7b')


def _beside(folder: Path, name: str) -> str:
    """The path of ``name`` in the config's ``folder`` as Python: by mmengine's variable, so that it may be moved."""
    if any(part in str(folder) for part in ('\\', '"""', '{{')):  # which mmengine would change, or Python
        return _plain(repr(str(folder / name)))
    return f'r"""{{{{ fileDirname }}}}/{name}"""'


def _model(photos: Photos, choices: Choices) -> str:
    count = len(photos.classes)
    backbone = []
    if choices.form == 'fused':
        backbone.append('deploy=True')
    if choices.freeze >= 0:
        backbone.append(f'frozen_stages={choices.freeze}')
    lines = [f'backbone=dict({", ".join(backbone)}),'] if backbone else []
    if photos.multi_label:
        lines += [
            f'data_preprocessor=dict(num_classes={count}, to_onehot=True),',
            'head=dict(',
            '    _delete_=True,',
            "    type='MultiLabelLinearClsHead',",
            f'    num_classes={count},',
            f'    in_channels={stage_widths(resolve_arch(choices.arch))[-1]},',
            "    loss=dict(type='CrossEntropyLoss', use_sigmoid=True),",
            '),',
        ]
    else:
        lines += [
            f'data_preprocessor=dict(num_classes={count}),',
            f'head=dict(num_classes={count}, topk={top_ks(count)}),',
        ]
    return 'model = dict(\n' + ''.join(f'    {line}\n' for line in lines) + ')'


def _loader(name: str, photos: Photos, part: PhotoList, recipe: Recipe, choices: Choices, work_dir: Path) -> str:
    train = name == 'train'
    dataset = ["type='MultiLabelDataset',"] if photos.multi_label else []
    dataset += [
        f'data_root={_plain(repr(str(part.root)))},',
        f'ann_file={_beside(work_dir, annotation_name(name, photos.multi_label))},',
        'metainfo=dict(classes=classes),',
    ]
    if choices.size != SIZE or (train and choices.balance):
        dataset += _train_pipeline(choices.size) if train else _test_pipeline(choices.size)
    if train and choices.balance:
        inner = ["type='CustomDataset',"] if not photos.multi_label else []
        dataset = [
            '_delete_=True,',
            "type='ClassBalancedDataset',",
            f'oversample_thr={choices.balance},',
            'dataset=dict(',
            *(f'    {line}' for line in inner + dataset),
            '),',
        ]
    batch = recipe.batch_size if train else max(recipe.batch_size, 32)
    lines = [f'batch_size={batch},', f'num_workers={choices.workers},']
    if not choices.workers:
        lines.append('persistent_workers=False,')
    if choices.gpu:
        lines.append('pin_memory=True,')
    if train and recipe.drop_last:
        lines.append('drop_last=True,  # the last batch would be a single photo')
    lines += ['dataset=dict(', *(f'    {line}' for line in dataset), '),']
    return f'{name}_dataloader = dict(\n' + ''.join(f'    {line}\n' for line in lines) + ')'


def _train_pipeline(size: int) -> list[str]:
    return [
        'pipeline=[',
        "    dict(type='mobileone_ext.LoadImageFromFile', lazy=True),",
        f"    dict(type='mobileone_ext.RandomResizedCrop', scale={size}, crop_ratio_range={CROPS}, backend='pillow'),",
        "    dict(type='RandomFlip', prob=0.5, direction='horizontal'),",
        "    dict(type='PackInputs'),",
        '],',
    ]


def _test_pipeline(size: int) -> list[str]:
    return [
        'pipeline=[',
        "    dict(type='mobileone_ext.LoadImageFromFile'),",
        f"    dict(type='ResizeEdge', scale={round(size * 256 / 224)}, edge='short', backend='pillow'),",
        f"    dict(type='CenterCrop', crop_size={size}),",
        "    dict(type='PackInputs'),",
        '],',
    ]


def _evaluator(photos: Photos) -> str:
    if photos.multi_label:
        value = "[dict(type='AveragePrecision'), dict(type='MultiLabelMetric')]"
    elif top_ks(len(photos.classes)) == (1, 5):
        return ''  # as in the base
    else:
        value = "dict(type='Accuracy', topk=(1,))"
    return f'val_evaluator = {value}\ntest_evaluator = val_evaluator'


def _schedule(recipe: Recipe, choices: Choices) -> str:
    epochs, warm_up = recipe.epochs, recipe.warm_up
    rest = round(epochs - warm_up, 5)
    optimizer = [f'optimizer=dict(lr={recipe.lr})']
    if choices.weights is None:
        optimizer.append("paramwise_cfg=dict(custom_keys={'head.': dict(lr_mult=1.0)})")
    steps = 'by_epoch=True, convert_to_iter_based=True'
    lines = [
        f"    dict(type='LinearLR', start_factor=0.001, begin=0, end={warm_up}, {steps}),",
        f"    dict(type='CosineAnnealingLR', T_max={rest}, begin={warm_up}, end={epochs}, {steps}),",
    ]
    return (
        f'optim_wrapper = dict({", ".join(optimizer)})\n'
        'param_scheduler = [\n' + '\n'.join(lines if warm_up else lines[1:]) + '\n]\n'
        f'train_cfg = dict(max_epochs={epochs})'
    )


def _hooks(photos: Photos, recipe: Recipe, choices: Choices) -> str:
    monitor = 'multi-label/mAP' if photos.multi_label else 'accuracy/top1'
    text = (
        'default_hooks = dict(\n'
        f'    logger=dict(interval={max(1, min(50, recipe.steps_per_epoch // 4))}),\n'
        f"    checkpoint=dict(save_best={monitor!r}, rule='greater', max_keep_ckpts=1),\n"
        ')\n'
    )
    hooks = []
    if recipe.ema_momentum:
        hooks.append(
            f"dict(type='EMAHook', momentum={recipe.ema_momentum}, update_buffers=True, priority='ABOVE_NORMAL'),"
        )
    if choices.patience is not None:
        hooks.append(
            f"dict(type='EarlyStoppingHook', monitor={monitor!r}, rule='greater', patience={choices.patience}),"
        )
    if hooks:
        text += 'custom_hooks = [\n' + ''.join(f'    {hook}\n' for hook in hooks) + ']\n'
    return text.rstrip('\n')
