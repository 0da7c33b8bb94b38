"""From photos to a report: arrangements, split, config, whole runs, bad input."""

import csv
import json
import random
import re
import shlex
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, only_line
from mmengine.config import Config
from PIL import Image
from server import Server

from mobileone_ext import cli
from mobileone_ext.backbone import MobileOne
from mobileone_ext.checkpoints.load import load_weights
from mobileone_ext.data.dataset import CustomDataset
from mobileone_ext.data.pixels import Preprocessing
from mobileone_ext.deploy import fuse
from mobileone_ext.deploy.quantization import photos as calibration
from mobileone_ext.engine import finetune
from mobileone_ext.engine.finetuning import photos as reading
from mobileone_ext.engine.finetuning import recipe as numbers
from mobileone_ext.engine.finetuning.scores import Scores, by_class, confusion, score_photos, worst
from mobileone_ext.engine.finetuning.split import rarest, stratified_split
from mobileone_ext.metadata import fit_of

COLORS = dict(blue=(20, 20, 200), green=(20, 200, 20), red=(200, 20, 20), gray=(128, 128, 128), white=(250, 250, 250))


def write_photos(root: Path, seed: int = 0, size: int = 40, **counts: int) -> Path:
    """``root``/CLASS/*.png of the class's color with a darker square, ``counts`` of each, no two alike."""
    draw = random.Random(seed)
    for name, count in counts.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            color = tuple(min(255, max(0, value + draw.randint(-15, 15))) for value in COLORS[name])
            photo = Image.new('RGB', (size + draw.randint(0, 15), size), color)
            photo.putpixel((0, 0), (seed % 256, number % 256, draw.randint(0, 255)))
            photo.paste(tuple(value // 2 for value in color), (size // 4, size // 4, size // 2, size // 2))
            photo.save(folder / f'{name} {seed}-{number}.png')
    return root


@pytest.fixture(scope='session')
def weights(tmp_path_factory) -> Path:
    """Random fused weights of S0 with a head of 1000 classes."""
    torch.manual_seed(0)
    backbone = MobileOne('s0', deploy=True)
    state = {f'backbone.{key}': tensor for key, tensor in backbone.state_dict().items()}
    state.update({'head.fc.weight': torch.randn(1000, 1024) / 32, 'head.fc.bias': torch.zeros(1000)})
    path = tmp_path_factory.mktemp('weights') / 's0_fused.pth'
    torch.save(dict(state_dict=state), path)
    return path


def run(run_tool, photos, weights, work_dir, *options):
    quick = ('--epochs', '1', '--image-size', '32', '--work-dir', work_dir)
    return run_tool('finetune', photos, '--weights', weights, *quick, *options)


@pytest.fixture(scope='module')
def finished(weights, tmp_path_factory) -> tuple[Path, Path]:
    """Photos of three classes, some gray and one on its side, and the folder of a run with them."""
    root = tmp_path_factory.mktemp('finished')
    photos = write_photos(root / "it's mine", blue=12, red=10, green=8)
    for path in sorted((photos / 'blue').iterdir())[::2]:
        Image.open(path).convert('L').save(path)
    turned = Image.open(photos / 'red' / 'red 0-0.png')
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(photos / 'red' / 'turned.jpg', exif=exif)
    (photos / 'red' / 'red 0-0.png').unlink()
    options = finetune.Options(str(photos), str(weights), epochs=1, size=32, seed=3, work_dir=str(root / 'work dir'))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, 'argv', [str(ROOT / 'tools' / 'finetune.py')])  # where the report's commands lie
        finetune.write_plan(finetune.make_plan(options))
        finetune.run(options.folder)
    return photos, options.folder


# ---- the split ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('fraction', [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize('counts', [dict(a=2, b=2), dict(a=1000, b=10), dict(a=7, b=50, c=3)])
def test_split_is_stratified_whole_and_leaves_something_on_each_side(counts, fraction):
    classes = [name for name, count in counts.items() for _ in range(count)]
    train, val = stratified_split(classes, range(len(classes)), fraction, seed=3)
    assert sorted(train + val) == list(range(len(classes)))
    for name, count in counts.items():
        measured = sum(classes[index] == name for index in val)
        assert measured == min(max(round(fraction * count), 1), count - 1)


def test_split_follows_the_seed_and_a_class_moves_no_other():
    classes = ['a'] * 50 + ['b'] * 50
    first = stratified_split(classes, range(100), 0.2, 0)
    assert first == stratified_split(classes, range(100), 0.2, 0) != stratified_split(classes, range(100), 0.2, 1)
    shorter = stratified_split(classes[:80], range(80), 0.2, 0)
    assert [index for index in first[1] if index < 50] == [index for index in shorter[1] if index < 50]


def test_split_keeps_copies_together():
    groups = [index // 5 for index in range(50)]
    train, val = stratified_split(['a'] * 50, groups, 0.3, 0)
    assert not {groups[index] for index in train} & {groups[index] for index in val}
    assert len(val) == 15


def test_a_photo_of_several_labels_counts_for_the_rarest():
    assert rarest([('a', 'b'), ('a',), ('a',), ('b', 'c'), ()]) == ['b', 'a', 'a', 'c', '']


# ---- the recipe ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('photos, batch', [(4, 4), (40, 4), (100, 8), (250, 16), (256, 32), (100_000, 32)])
def test_batch_fits_the_photos(photos, batch):
    assert numbers.fitting_batch_size(photos) == batch


def test_recipe_by_hand():
    assert numbers.make_recipe(2022, 20, 32, 0.7) == numbers.Recipe(20, 32, 64, 0.7, 2.0, 0.016, False)
    short = numbers.make_recipe(33, 3, 32, 0.7)
    assert (short.steps_per_epoch, short.drop_last, short.ema_momentum, short.warm_up) == (1, True, None, 0.0)
    assert numbers.scaled_lr(1e-4, 32) == 1e-4 and numbers.scaled_lr(1e-4, 8) == 5e-5


@pytest.mark.parametrize(
    'options, form, lr',
    [
        (dict(batch_size=32), 'norm', 3e-4),
        (dict(batch_size=64), 'norm', 4.2e-4),
        (dict(batch_size=16), 'fused', 7.1e-5),
        (dict(batch_size=32, unfuse='none'), 'fused', 1e-4),
        (dict(batch_size=32, unfuse='branches'), 'branched', 3e-4),
        (dict(batch_size=32, weights='none'), 'branched', 2e-3),
        (dict(batch_size=32, lr=0.5), 'norm', 0.5),
    ],
)
def test_what_is_trained_follows_from_the_batch(options, form, lr, weights, finished):
    photos, _ = finished
    plan = finetune.make_plan(finetune.Options(str(photos), **{'weights': str(weights), **options}))
    assert (plan.form, plan.recipe.lr, plan.options.lr) == (form, lr, lr)


@pytest.mark.parametrize('epochs', [1, 2, 3, 7, 20, 100])
@pytest.mark.parametrize('steps', [1, 2, 3, 7, 29, 64, 1000])
def test_warm_up_is_a_tenth_of_the_steps_as_mmengine_counts_them(epochs, steps):
    assert int(numbers.warm_up_epochs(epochs, steps) * steps) == round(epochs * steps / 10)


def test_balanced_count_is_the_data_set_s(tmp_path):
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import DATASETS

    init_default_scope('mmpretrain')
    write_photos(tmp_path, blue=30, red=5, green=2)
    inner = dict(type='CustomDataset', data_root=str(tmp_path), pipeline=[])
    built = DATASETS.build(dict(type='ClassBalancedDataset', oversample_thr=30 / 37, dataset=inner))
    assert numbers.balanced_count([30, 2, 5], 30 / 37) == len(built) == 30 + 2 * 4 + 5 * 3


# ---- how photos are arranged --------------------------------------------------------------------------------------


def read(path, val=None):
    return reading.read_photos(Path(path), val)


def test_class_folders_and_what_is_left_out(tmp_path):
    write_photos(tmp_path, red=2, blue=3)
    (tmp_path / '.ipynb_checkpoints').mkdir()
    (tmp_path / 'red' / 'notes.txt').write_text('x')
    (tmp_path / 'red' / 'deeper').mkdir()
    shutil.copy(tmp_path / 'blue' / 'blue 0-0.png', tmp_path / 'red' / 'deeper' / 'X.PNG')
    actual = read(tmp_path)
    assert actual.classes == ('blue', 'red') and actual.val is None
    assert sorted(photo.labels[0] for photo in actual.train.photos) == ['blue'] * 3 + ['red'] * 3
    assert any('1 .txt' in note for note in actual.notes)


@pytest.mark.parametrize(
    'names',
    [
        ('train', 'val'), ('Train', 'Validation'), ('training', 'valid'), ('train', 'test'), ('training', 'testing'),
        ('train', 'exam'), ('learn', 'test'), ('cars_train', 'cars_test'), ('TrainSet', 'TestSet'),
    ],
)  # fmt: skip
def test_split_folders(tmp_path, names):
    for number, name in enumerate(names):
        write_photos(tmp_path / name, seed=number, red=3 - number, blue=2)
    actual = read(tmp_path)
    assert (len(actual.train.photos), len(actual.val.photos), actual.test) == (5, 4, None)


def test_three_folders_and_a_class_called_train(tmp_path):
    for number, name in enumerate(('train', 'valid', 'test')):
        write_photos(tmp_path / 'split' / name, seed=number, red=2, blue=2)
    assert len(read(tmp_path / 'split').test.photos) == 4
    write_photos(tmp_path / 'vehicles', red=2)
    (tmp_path / 'vehicles' / 'red').rename(tmp_path / 'vehicles' / 'train')
    write_photos(tmp_path / 'vehicles', blue=2)
    assert read(tmp_path / 'vehicles').classes == ('blue', 'train')


@pytest.mark.parametrize('names', [('learn', 'exam'), ('fold0', 'fold1'), ('обучение', 'проверка'), ('cat', 'dog')])
def test_parts_of_a_split_that_do_not_say_which_trains(tmp_path, names):
    """Refused, and both remedies that the line names are ways on."""
    for number, name in enumerate(names):
        write_photos(tmp_path / 'p' / name, seed=number, red=3 - number, blue=2)
    train, val = (tmp_path / 'p' / name for name in names)
    with pytest.raises(ValueError, match=f'as in {train} --val {val}; if they are classes, move them into'):
        read(tmp_path / 'p')
    actual = read(train, val)
    assert (actual.classes, len(actual.train.photos), len(actual.val.photos)) == (('blue', 'red'), 5, 4)
    (tmp_path / 'q').mkdir()
    (tmp_path / 'p').rename(tmp_path / 'q' / 'train')
    assert read(tmp_path / 'q').classes == tuple(sorted(names))


def test_another_place_to_measure_on_says_what_the_folders_are(tmp_path):
    for name in ('cat', 'dog'):
        write_photos(tmp_path / 'p' / name, red=2, blue=2)
        write_photos(tmp_path / 'val', red=2)
        (tmp_path / 'val' / 'red').rename(tmp_path / 'val' / name)
    assert read(tmp_path / 'p', tmp_path / 'val').classes == ('cat', 'dog')
    with pytest.raises(ValueError, match="has classes that .* does not train: 'blue', 'red'"):
        read(tmp_path / 'p', tmp_path / 'p' / 'dog')
    (tmp_path / 'l.csv').write_text('file,label\nval/cat/red 0-0.png,cat\nval/dog/red 0-1.png,dog\n')
    for train, val in ((tmp_path / 'l.csv', tmp_path / 'val'), (tmp_path / 'val', tmp_path / 'l.csv')):
        assert read(train, val).val.photos


def test_everything_that_became_no_class_is_said(tmp_path):
    write_photos(tmp_path / 'train', red=2, blue=2)
    for name in ('train/.net', 'val', 'later/deep'):
        write_photos(tmp_path / name, red=2)
        for path in (tmp_path / name / 'red').iterdir():
            path.rename(tmp_path / name / path.name)
        (tmp_path / name / 'red').rmdir()
    shutil.copy(tmp_path / 'val' / 'red 0-0.png', tmp_path / 'loose.png')
    shutil.copy(tmp_path / 'val' / 'red 0-0.png', tmp_path / 'train' / 'loose.png')
    shutil.rmtree(tmp_path / 'later')
    actual = read(tmp_path)
    assert actual.val is None and len(actual.train.photos) == 4
    assert actual.notes == (
        f'{tmp_path}: a split (train: {tmp_path / "train"})',
        f"{tmp_path}: left out: 2 photos in 'val', 1 photos in no class folder",
        f"{tmp_path / 'train'}: left out: 1 hidden '.net', 1 photos in no class folder",
    )


# Persian, French, Hebrew and others; white space at the ends; an unassigned, a tag and a private character.
SCRIPTS = [
    'می\u200cخواهم',
    'caf\u00e9\u00a0noir',
    '\u00a0chat',
    ' dog',
    'हिन्दी',
    '👩\u200d🚀',
    'שָׁלוֹם',
    '猫',
    'a;b|c "d"',
]
SCRIPTS += ['\U0003fff0\U000e0041\uf8ff']


def test_names_in_every_script_are_learned(tmp_path):
    """In folders and photos; and a data set finds every photo by what was written."""
    drawn = sorted(write_photos(tmp_path / 'drawn', red=3 * len(SCRIPTS)).rglob('*.png'))
    for number, path in enumerate(drawn):
        name = SCRIPTS[number % len(SCRIPTS)]
        (tmp_path / 'p' / name).mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / 'p' / name / f'{name} {number}.png')
    options = finetune.Options(str(tmp_path / 'p'), weights='none', size=32, work_dir=str(tmp_path / 'w'))
    plan = finetune.make_plan(options)
    assert plan.photos.notes == ()
    config, paths = cli.load_config(str(finetune.write_plan(plan))), []
    for dataset in (config.train_dataloader.dataset, config.val_dataloader.dataset):
        actual = CustomDataset(dataset.data_root, ann_file=dataset.ann_file, metainfo=dataset.metainfo, pipeline=[])
        for info in map(actual.get_data_info, range(len(actual))):
            assert Path(info['img_path']).parent.name == sorted(SCRIPTS)[info['gt_label']]
            paths.append(Path(info['img_path']))
    assert len({path.resolve() for path in paths if path.is_file()}) == len(drawn)


@pytest.mark.parametrize('name', ['two\nlines', 'tab\there', 'line\u2028end', 'next\x85line', 'stray\udce9'])
def test_names_that_no_line_can_hold_are_left_out_and_said(tmp_path, name):
    write_photos(tmp_path, red=3, blue=3)
    path = tmp_path / 'red' / 'red 0-0.png'
    path.rename(tmp_path / 'red' / f'{name}.png')
    actual = reading.without_unwritable(read(tmp_path))
    assert len(actual.train.photos) == 5
    assert '1 left out, line ends, control characters or stray bytes in the name: ' in actual.notes[0]
    assert '\n' not in actual.notes[0]


def test_composed_and_decomposed_names_are_one_class(tmp_path):
    """In folders, in both parts of a split, in a CSV file and in the paths that it names."""
    drawn = write_photos(tmp_path / 'drawn', red=8)
    for path, folder in zip(
        sorted(drawn.rglob('*.png')), ['train/caf\u00e9', 'train/b', 'val/cafe\u0301', 'val/b'] * 2
    ):
        (tmp_path / 'p' / folder).mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / 'p' / folder / path.name)
    actual = read(tmp_path / 'p')
    assert actual.classes == ('b', 'caf\u00e9') and len(actual.val.photos) == 4
    (tmp_path / 'p' / 'val' / 'cafe\u0301').rename(tmp_path / 'p' / 'train' / 'cafe\u0301')
    both = read(tmp_path / 'p' / 'train')
    assert both.classes == ('b', 'caf\u00e9') and len(both.train.photos) == 6
    assert "differ only in how letters are composed are one class: 'caf\u00e9'" in both.notes[0]
    (name,) = [path.name for path in (tmp_path / 'p' / 'train' / 'cafe\u0301').glob('* 0-2.png')]
    rows = f'file,label\ntrain/caf\u00e9/{name},cafe\u0301\ntrain/b/red 0-1.png,b\n'
    (tmp_path / 'p' / 'l.csv').write_text(rows)
    listed = read(tmp_path / 'p' / 'l.csv')
    assert listed.classes == ('b', 'caf\u00e9')
    assert (listed.train.root / listed.train.photos[0].path).is_file()


def test_csv_of_one_label(tmp_path):
    write_photos(tmp_path, red=2, blue=2)
    rows = ['file,label', *(f'"{path.relative_to(tmp_path)}",{path.parent.name}' for path in tmp_path.rglob('*.png'))]
    (tmp_path / 'labels.csv').write_text('\n'.join(rows))
    actual = read(tmp_path / 'labels.csv')
    assert (actual.classes, actual.multi_label, len(actual.train.photos)) == (('blue', 'red'), False, 4)


def test_csv_of_several_labels(tmp_path):
    write_photos(tmp_path, red=3)
    lines = [
        'label,file',
        'warm;red,red/red 0-0.png',
        'red,red/red 0-1.png',
        'warm,red/red 0-1.png',
        ',red/red 0-2.png',
    ]
    (tmp_path / 'labels.csv').write_text('\n'.join([*lines, ',red/red 0-2.png']))
    actual = read(tmp_path / 'labels.csv')
    assert actual.multi_label and [photo.labels for photo in actual.train.photos] == [
        ('warm', 'red'),
        ('red', 'warm'),
        (),
    ]


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le with its mark'])
def test_csv_in_the_encodings_that_say_what_they_are(tmp_path, encoding):
    write_photos(tmp_path, red=1, blue=1)
    text = 'file,label\r\nred/red 0-0.png,caf\u00e9|th\u00e9\r\nblue/blue 0-0.png,猫\r\n'
    data = b'\xff\xfe' + text.encode('utf-16-le') if 'mark' in encoding else text.encode(encoding)
    (tmp_path / 'l.csv').write_bytes(data)
    actual = read(tmp_path / 'l.csv')
    assert actual.classes == ('caf\u00e9|th\u00e9', '猫') and not actual.multi_label and actual.notes == ()


GOOD = 'file,label\nred/red 0-0.png,red\nblue/blue 0-0.png,blue\n'


@pytest.mark.parametrize(
    'text, word',
    [
        (GOOD.replace('red\n', 'caf\u00e9\n').encode('cp1252'), 'line 2: not UTF-8 text .*; save it as UTF-8'),
        (GOOD.encode('utf-16-le'), 'first line must be file,label'),
        (GOOD.encode('utf-16')[:-1], 'not UTF-8 text'),
        (GOOD.replace(',blue', ',"blue'), 'line 3: not CSV .*quotes'),
        (GOOD.replace(',red', ',"red') + 'x.png,y\n' * 20_000, 'line 2: not CSV .*quotes'),
        (GOOD.replace(',red', ',"red').replace('blue\n', 'blue"\n'), 'line 3: .*a label stands on one line'),
        (GOOD.replace(',red', ',red, or so'), 'line 2: more values than columns'),
        (GOOD.replace(',red', ',re\x07d'), 'line 2: .*a label stands on one line'),
        ('', 'first line must be file,label, not nothing'),
        (GOOD.replace('0-0', '9-9'), '2 files are not there'),
    ],
)
def test_bad_csv_is_a_line_that_names_the_file(tmp_path, text, word):
    write_photos(tmp_path, red=1, blue=1)
    (tmp_path / 'l.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f'l.csv.*{word}') as raised:
        read(tmp_path / 'l.csv')
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
    'rows, said',
    [
        ('red/red 0-1.png,\n', '1 photos have no label (the first is {}/red/red 0-1.png)'),
        (
            'red/red 0-1.png,red\nred/red 0-1.png,blue\n',
            '1 photos have several labels (the first is {}/red/red 0-1.png)',
        ),
        (
            'red/red 0-1.png\nred/red 0-2.png,a;b\nred/red 0-3.png,a;c\n',
            '2 photos have several labels (the first is {0}/red/red 0-2.png) and '
            '1 photos have no label (the first is {0}/red/red 0-1.png)',
        ),
    ],
)
def test_what_turns_a_run_multi_label_is_said(tmp_path, rows, said):
    write_photos(tmp_path, red=4, blue=1)
    (tmp_path / 'l.csv').write_text(GOOD + rows)
    actual = read(tmp_path / 'l.csv')
    note = f'multi-label, a score of its own for every label: {said.format(tmp_path)}'
    assert actual.multi_label and actual.notes == (note,)
    (tmp_path / 'l.csv').write_text(GOOD + 'red/red 0-1.png,red\nred/red 0-1.png,red\n')
    assert not read(tmp_path / 'l.csv').multi_label


@pytest.mark.parametrize('classes', [2, 4000])
def test_checks_of_many_photos_take_no_longer_than_they_are_many(classes):
    """Not their square: a few seconds would be minutes."""
    count = 40_000
    part = [reading.Photo(f'{i}.jpg', (f'{i % classes}',)) for i in range(count)]
    photos = reading.Photos(tuple(sorted({photo.labels[0] for photo in part})), reading.PhotoList(Path('x'), part))
    digests = dict(train={photo.path: f'{max(i, 1) if i < 9 else i}' for i, photo in enumerate(part)})
    start = time.process_time()
    photos = reading.without_contradictions(reading.without_unwritable(photos), digests)
    assert len(photos.train.photos) == count - 2
    photos = reading.split(photos, 0.2, 0, digests)
    digests['val'] = digests['train']
    assert len(reading.without_repeats(photos, digests).train.photos) == len(photos.train.photos)
    stratified_split(['a'] * 100_000, range(100_000), 0.2, 0)
    assert time.process_time() - start < 15


# ---- whole runs ---------------------------------------------------------------------------------------------------


def test_a_run_writes_a_config_a_network_and_a_report(run_tool, weights, finished):
    photos, work = finished
    assert len(list(photos.rglob('*.*'))) == 30, 'nothing is written among the photos'
    config = cli.load_config(str(work / 'config.py'))
    assert config.train_dataloader.dataset.metainfo.classes == ['blue', 'green', 'red']
    assert config.model.head.num_classes == config.model.data_preprocessor.num_classes == 3
    assert config.model.head.topk == config.val_evaluator.topk == (1,)
    assert config.model.backbone.deploy
    lists = {name: (work / f'{name}.txt').read_text().splitlines() for name in ('train', 'val')}
    assert len(lists['train']) == 24 and len(lists['val']) == 6
    assert not set(lists['train']) & set(lists['val'])
    assert "photos = '" in (work / 'config.py').read_text().replace('"', "'"), 'the readable config was overwritten'

    report = json.loads((work / 'report.json').read_text())
    assert report['changed_predictions'] == 0 and report['right_before'] == report['right_after']
    assert report['trained_fused'] and report['num_images'] == 6 and report['num_train'] == 24
    assert sum(map(sum, report['confusion'])) == 6
    right = sum(report['confusion'][i][i] for i in range(3))
    assert report['deployed']['top1_after'] == pytest.approx(100 * right / 6) == pytest.approx(report['right_after'])
    text = (work / 'report.md').read_text()
    assert 'nothing to fuse' in text and '| green | 2 |' in text
    for picture in ('confusion', 'curves'):
        assert Image.open(work / f'{picture}.png').width > 300
    assert list(work.rglob('events.out.tfevents.*'))
    page = (work / 'report.html').read_text()
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page)[1])
    listed = {str(photos / line.rpartition(' ')[0]) for line in lists['val']}
    assert {data['root'] + photo['path'] for photo in data['photos'][:6]} == listed
    assert all(photo['thumb'] and photo['map'] for photo in data['photos'][:6]) and data['map'] == [1, 1]
    rows = list(csv.DictReader((work / 'photos.csv').open(newline='')))
    assert len(rows) == data['measured'] == 6 and {row['file'] for row in rows} == listed
    assert sum(row['label'] == row['guess'] for row in rows) == right

    refused, printed = run(run_tool, photos, weights, work)
    assert refused == 1 and '--resume' in only_line(printed)


def test_the_commands_of_the_report_run_and_calibrate_with_what_was_trained(run_tool, finished, monkeypatch):
    """In the run's folder."""
    photos, work = finished
    lines = (work / 'train.txt').read_text().splitlines()
    calibrating = [str(path) for path in calibration.find(cli.load_config(str(work / 'config.py')), None)[0]]
    assert calibrating == [str(photos / line.rpartition(' ')[0]) for line in lines] and len(lines) == 24
    commands = json.loads((work / 'report.json').read_text())['commands']
    assert len(commands) == 4
    for _, command in commands:
        python, _, package, tool, *arguments = shlex.split(command)
        assert (python, package) == ('python', 'mobileone_ext') and str(work) not in command
        assert tool != 'predict' or Path(arguments[-1]).is_absolute(), 'the folder may be moved'
        monkeypatch.chdir(work)
        code, printed = run_tool(tool, *arguments)
        assert code == 0, printed
        assert ('24 calibration images from the training set' in printed) == (tool == 'quantize')
    assert (work / 'model_int8.onnx').exists()


def timm_agrees(work: Path, photo: Path) -> None:
    """Hold the hub's folder in timm against ``work``/fused.pth."""
    config = cli.load_config(str(work / 'config.py'))
    model = timm.create_model(f'local-dir:{work / "hub"}', pretrained=True).eval()
    settings = timm.data.resolve_model_data_config(model)
    images = timm.data.create_transform(**settings, is_training=False)(Image.open(photo))[None]
    fused = fuse.load_model(config, load_weights(work / 'fused.pth'))
    preprocessing = Preprocessing(config)
    ((_, pixels),) = preprocessing.read([photo], [])
    with torch.no_grad():
        logits = fused(preprocessing.normalize(pixels[None]))
        torch.testing.assert_close(model(images), logits, rtol=1e-3, atol=1e-4 * float(logits.abs().max()))


def test_timm_opens_the_hubs_folder_and_gives_what_the_fused_file_gives(finished):
    photos, work = finished
    timm_agrees(work, next((photos / 'green').iterdir()))
    model = timm.create_model(f'local-dir:{work / "hub"}')
    assert model.pretrained_cfg['label_names'] == ['blue', 'green', 'red']
    card, report = ((work / name).read_text() for name in ('hub/README.md', 'report.md'))
    terms = r'the weights keep the license of s0_fused.pth'
    assert terms in card and f'License: {terms}. The same network for timm and transformers is in hub/.' in report
    right = json.loads((work / 'report.json').read_text())['right_after']
    assert f'| right of 6 photos | {right:.2f} |' in card


def test_a_run_may_be_moved(run_tool, finished, tmp_path):
    """Its folder stands on no file of the checkout, nor on its own place."""
    photos, work = finished
    moved = tmp_path / "it's" / 'moved'
    shutil.copytree(work, moved)
    config = cli.load_config(str(moved / 'config.py'))
    assert Config._get_base_files(str(moved / 'config.py')) == []
    assert config.work_dir == str(moved / 'run')
    for tool, arguments in (('test', ()), ('predict', (photos,)), ('train', ('--work-dir', tmp_path / 'again'))):
        network = () if tool == 'train' else (moved / 'fused.pth',)
        code, printed = run_tool(tool, moved / 'config.py', *network, *arguments)
        assert code == 0, printed


def test_the_folder_of_a_run_is_a_network_with_its_config(run_tool, finished, tmp_path, monkeypatch):
    """Its photos are those that it was trained on and measured with, also where both have moved."""
    photos, work = finished
    monkeypatch.chdir(tmp_path)  # where logs go
    code, printed = run_tool('test', work, '--out', 'there.json')
    assert code == 0, printed
    work.parent.rename(tmp_path / 'elsewhere')
    try:
        code, printed = run_tool('test', tmp_path / 'elsewhere' / work.name, '--out', 'moved.json')
    finally:
        (tmp_path / 'elsewhere').rename(work.parent)
    assert code == 0, printed
    one, other = (json.loads(Path(name).read_text()) for name in ('there.json', 'moved.json'))
    assert one == other and one['num_images'] == 6
    code, printed = run_tool('quantize', work, '--num-images', 4, 'int8.onnx')
    assert code == 0 and '4 calibration images from the training set' in printed
    code, printed = run_tool('export', work, 'net.pt')
    assert code == 0 and Path('net.pt').exists()
    code, printed = run_tool('test', work, 'net.pt', '--out', 'file.json')
    assert code == 0 and json.loads(Path('file.json').read_text())['num_images'] == 6
    code, printed = run_tool('quantize', 'int8.onnx', work)  # the other way round
    assert code == 1 and f'{work}: an int8 file is named *.onnx' in only_line(printed)
    code, printed = run_tool('features', work, photos)
    assert code == 1 and f"is a run's folder, not photos; --network {work}" in only_line(printed)
    code, printed = run_tool('test', 'net.pt')
    assert code == 1 and 'net.pt: does not say on which photos to measure it; name a config or a run' in only_line(
        printed
    )
    code, printed = run_tool('finetune', work, '--work-dir', 'new')
    assert code == 1 and "is a run's folder, not photos" in only_line(printed) and not Path('new').exists()
    assert Path('work_dirs', work.name, 'test').is_dir()
    code, printed = run_tool('predict', work, photos, '--explain', 'net.pt')
    assert code == 1 and "'net.pt': is a file; a folder is needed" in only_line(printed)
    code, printed = run_tool('test', work / 'config.py')
    assert code == 1 and 'config.py: is a config; a network is needed here' in only_line(printed)


def test_a_run_and_its_photos_may_be_moved_together(run_tool, finished, weights, tmp_path, monkeypatch):
    """To another machine, where nothing lies where it lay: it is found, and goes on."""
    photos, work = finished
    shutil.copytree(work.parent, tmp_path / 'there')
    moved = tmp_path / 'there' / work.name
    text = (moved / 'config.py').read_text().replace(f'{photos.parent}', '/gone')
    (moved / 'config.py').write_text(text)
    assert '/gone' in text and cli.load_config(str(moved / 'config.py')).train_dataloader.dataset.data_root == str(
        tmp_path / 'there' / photos.name
    )
    monkeypatch.chdir(moved)
    code, printed = run_tool('test', 'config.py', 'fused.pth')
    assert code == 0, printed
    photos.rename(photos.with_name('gone'))  # the run was copied, the photos were moved
    try:
        code, printed = run_tool('test', 'fused.pth')
    finally:
        photos.with_name('gone').rename(photos)
    assert code == 0, printed
    started = finetune.Options(str(tmp_path / 'there' / photos.name), work_dir=str(moved))
    finetune.check_resumed(started, dict(photos=started.photos))
    finetune.check_resumed(started, dict(photos=str(photos)))
    with pytest.raises(ValueError, match='was started with photos'):
        finetune.check_resumed(started, dict(photos=str(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize(
    'given, branches', [(['--branches'], 4), (['--unfuse', 'branches'], 4), (['--unfuse', 'norm'], 1)]
)
def test_norms_and_branches_are_given_back_and_fused(given, branches, run_tool, weights, tmp_path):
    photos = write_photos(tmp_path / 'p', blue=6, red=6)
    code, printed = run(run_tool, photos, weights, tmp_path / 'w', *given)
    assert code == 0, printed
    trained = load_weights(tmp_path / 'w' / 'run' / 'epoch_1.pth')
    assert trained.structure.num_conv_branches[-1] == branches and trained.structure.use_skip == (branches > 1)
    timm_agrees(tmp_path / 'w', next(photos.glob('*/*')))
    assert 'eta:' in printed and 'report.md' in printed and 'config.py' in printed
    report = json.loads((tmp_path / 'w' / 'report.json').read_text())
    assert not report['trained_fused'] and report['deployed']['params_before'] > report['deployed']['params_after']
    assert 'Fusing changed 0 of 2' in (tmp_path / 'w' / 'report.md').read_text()


def test_a_dry_run_writes_the_config_and_draws_the_recipe_alone(run_tool, weights, tmp_path, without_scikit_learn):
    photos = write_photos(tmp_path / 'p', blue=6, red=6)
    code, printed = run(run_tool, photos, weights, tmp_path / 'w', '--dry-run')
    assert code == 0, printed
    assert {path.name for path in (tmp_path / 'w').iterdir()} == {
        'config.py', 'options.json', 'recipe.png', 'train.txt', 'val.txt',
    }  # fmt: skip
    assert run(run_tool, photos, weights, tmp_path / 'w', '--dry-run', '--epochs', '4')[0] == 0
    config = cli.load_config(str(tmp_path / 'w' / 'config.py'))
    assert config.train_cfg.max_epochs == config.param_scheduler[-1].end == 4 and config.model.backbone.deploy
    assert run(run_tool, photos, weights, tmp_path / 'w', '--dry-run', '--branches')[0] == 0
    assert 'deploy' not in cli.load_config(str(tmp_path / 'w' / 'config.py')).model.backbone


def test_a_run_goes_on_with_its_own_options_alone(run_tool, weights, finished, tmp_path, monkeypatch):
    """Whatever the words: paths are compared by what they lead to, and values given with those that followed."""
    photos, work = finished
    shutil.copytree(work, tmp_path / 'w')
    network = (tmp_path / 'w' / 'run' / 'epoch_1.pth').read_bytes()
    (tmp_path / 'w' / 'report.md').unlink()
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'link').symlink_to(photos)
    for given, word in (
        (dict(seed=4), 'seed 3, not 4'),
        (dict(val='0.3'), 'val 0.2, not 0.3'),
        (dict(val=str(photos)), f'val 0.2, not {photos}'),
        (dict(batch_size=8), 'batch-size 4, not 8'),
        (dict(lr=1.0), 'lr 3.5e-05, not 1.0'),
        (dict(early_stop=5), 'early-stop None, not 5'),
        (dict(precision=0.9), 'precision 0.95, not 0.9'),
        (dict(others=str(photos)), f'others None, not {photos}'),
        (dict(weights='none'), f'weights {weights}, not none'),
        (dict(photos=str(weights.parent)), f'photos {photos}, not {weights.parent}'),
    ):
        with pytest.raises(ValueError, match=re.escape(word)):
            finetune.check_resumed(finetune.Options('p', work_dir='w'), given)
    for words in ('link', 'link/', './link', str(photos), f'../{tmp_path.name}/link'):
        finetune.check_resumed(finetune.Options(words, work_dir='w'), dict(photos=words))
    code, printed = run(run_tool, photos, weights, 'w', '--resume', '--arch', 's1')
    assert code == 1 and 'arch s0, not s1' in only_line(printed)
    defaults = ('--val', '0.20', '--arch', 's0', '--lr', '3.5e-5', '--batch-size', '4', '--freeze', '-1', '--seed', '3')
    gone = photos / (tmp_path / 'w' / 'val.txt').read_text().splitlines()[0].rpartition(' ')[0]
    train = finetune._train

    def train_and_lose_a_photo(*arguments):
        checkpoint = train(*arguments)
        gone.rename(tmp_path / 'gone.png')
        return checkpoint

    monkeypatch.setattr(finetune, '_train', train_and_lose_a_photo)
    code, printed = run(run_tool, 'link/', weights, 'w', '--resume', *defaults)
    (tmp_path / 'gone.png').rename(gone)
    assert code == 0, printed
    report = json.loads((tmp_path / 'w' / 'report.json').read_text())
    assert report['num_images'] == 5 and f"1 photos that were there at the start are gone: '{gone}'" in report['notes']
    assert (tmp_path / 'w' / 'report.md').exists()
    assert (tmp_path / 'w' / 'run' / 'epoch_1.pth').read_bytes() == network


@pytest.mark.slow
def test_balance_early_stop_freeze_and_separate_photos(run_tool, weights, tmp_path):
    photos = write_photos(tmp_path / 'p', blue=40, red=2)
    other = write_photos(tmp_path / 'other', seed=1, blue=3, red=3)
    options = ('--balance', '--early-stop', '1', '--freeze', '4', '--val', other, '--epochs', '6', '--lr', '1e-9')
    code, printed = run(run_tool, photos, weights, tmp_path / 'w', *options)
    assert code == 0, printed
    config = cli.load_config(str(tmp_path / 'w' / 'config.py'))
    assert config.train_dataloader.dataset.type == 'ClassBalancedDataset'
    assert config.model.backbone.frozen_stages == 4
    assert 'did not improve' in printed and not (tmp_path / 'w' / 'run' / 'epoch_6.pth').exists()
    assert 'best_' in (tmp_path / 'w' / 'report.md').read_text()


def test_several_labels(run_tool, weights, tmp_path):
    write_photos(tmp_path, red=8, blue=8, white=8)
    labels = dict(red='warm;dark', blue='dark', white='')
    rows = [f'{path.relative_to(tmp_path)},{labels[path.parent.name]}' for path in sorted(tmp_path.rglob('*.png'))]
    (tmp_path / 'labels.csv').write_text('\n'.join(['file,label', *rows]))
    code, printed = run(run_tool, tmp_path / 'labels.csv', weights, tmp_path / 'w')
    assert code == 0, printed
    report = json.loads((tmp_path / 'w' / 'report.json').read_text())
    assert report['multi_label'] and report['changed_predictions'] == 0 and report['classes'] == ['dark', 'warm']
    assert [row['count'] for row in report['per_class']] == [4, 2]
    assert '"label":[0,1]' in (tmp_path / 'w' / 'report.html').read_text()
    network = (tmp_path / 'w' / 'config.py', tmp_path / 'w' / 'fused.pth')
    code, printed = run_tool('predict', *network, tmp_path / 'red' / 'red 0-0.png', '--out', tmp_path / 'out.json')
    assert code == 0, printed
    scores = [best['score'] for best in json.loads((tmp_path / 'out.json').read_text())[0]['predictions']]
    actual = score_photos(config=cli.load_config(str(network[0])), checkpoint=str(network[1]))
    assert sum(scores) != pytest.approx(1) and len(scores) == actual.scores.shape[1]
    code, printed = run_tool('export', *network, tmp_path / 'x.onnx', '--softmax')
    assert code == 1 and 'several labels' in only_line(printed)


# ---- scores that are calibrated, and strangers ---------------------------------------------------------------------


def test_a_network_knows_when_it_does_not_know(run_tool, weights, tmp_path):
    """Temperature and threshold in all that is written, whole photos on the way, strangers measured and said."""
    photos = write_photos(tmp_path / 'p', blue=8, red=8)
    write_photos(tmp_path / 'val', seed=1, blue=60, red=60)
    write_photos(tmp_path / 'others', seed=2, white=6)
    shutil.copy(tmp_path / 'val' / 'red' / 'red 1-0.png', tmp_path / 'others' / 'white' / 'copy.png')
    options = ('--val', tmp_path / 'val', '--others', tmp_path / 'others', '--precision', '0.3', '--fit', 'pad')
    code, printed = run(run_tool, photos, weights, tmp_path / 'w', *options)
    assert code == 0, printed
    assert f'{tmp_path / "others"}: left out: 1 photos that have a class too' in printed
    report = json.loads((tmp_path / 'w' / 'report.json').read_text())
    said = report['calibration']
    assert said['others']['num'] == 6 and said['num_photos'] == 120 and said['same_photos']
    meta = torch.load(tmp_path / 'w' / 'fused.pth')['meta']
    assert meta['temperature'] == said['temperature'] > 0 and meta['threshold'] == said['threshold'] > 0
    assert (meta['fit'], meta['size']) == ('pad', [32, 32])
    hub = json.loads((tmp_path / 'w' / 'hub' / 'config.json').read_text())
    assert hub['threshold'] == said['threshold'] and hub['pretrained_cfg']['crop_mode'] == 'border'
    told = f'below a score of {said["threshold"]:.2f} is "unknown"'
    assert told in (tmp_path / 'w' / 'report.md').read_text()
    assert printed.splitlines()[-1] == f'report: {tmp_path / "w" / "report.html"}, {tmp_path / "w" / "report.md"}'
    assert '--others: fewer than' not in printed

    config = cli.load_config(str(tmp_path / 'w' / 'config.py'))
    actual = score_photos(config, str(tmp_path / 'w' / 'fused.pth'))
    expected = (torch.from_numpy(actual.logits) / said['temperature']).softmax(1).amax(1)
    answered = (expected >= said['threshold']).double().mean()
    assert said['answered'] == pytest.approx(float(answered))
    steps = [str(step['type']) for step in config.train_dataloader.dataset.pipeline]
    assert steps[:3] == [
        'mobileone_ext.LoadImageFromFile',
        'mobileone_ext.ResizePad',
        'mobileone_ext.RandomResizedCrop',
    ]
    code, printed = run_tool('predict', tmp_path / 'w', tmp_path / 'val', '--out', tmp_path / 'out.json')
    assert code == 0, printed
    found = json.loads((tmp_path / 'out.json').read_text())
    scores = {Path(one['image']).name: one['predictions'][0]['score'] for one in found}
    for path, score in zip(actual.paths, expected):
        assert scores[Path(path).name] == pytest.approx(float(score), abs=1e-5)


def test_few_photos_set_no_threshold_and_say_so(finished):
    _, work = finished
    said = json.loads((work / 'report.json').read_text())['calibration']
    assert said['temperature'] is said['threshold'] is None and '6 photos are too few' in said['note']
    assert '6 photos are too few' in (work / 'report.md').read_text()
    assert not {'temperature', 'threshold'} & torch.load(work / 'fused.pth')['meta'].keys()


def test_strangers_are_looked_for_where_they_were_and_then_from_the_folder(weights, tmp_path, monkeypatch, capsys):
    photos = write_photos(tmp_path / 'a' / 'p', blue=4, red=4)
    others = write_photos(tmp_path / 'a' / 'others', seed=2, white=3)
    given = dict(weights=weights, others=others, size=32)
    finetune.finetune(photos, tmp_path / 'a' / 'w', dry_run=True, **given)
    assert 'fewer than 100 validation photos (here 2) set no threshold' in capsys.readouterr().out
    (tmp_path / 'deep' / 'er').mkdir(parents=True)
    alone = Path(shutil.move(tmp_path / 'a' / 'w', tmp_path / 'deep' / 'er' / 'w'))
    started = json.loads((alone / 'options.json').read_text())
    assert finetune.find_strangers(alone, started) == (sorted(others.rglob('*.png')), [])
    shutil.move(alone, tmp_path / 'a' / 'w')
    moved = Path(shutil.move(tmp_path / 'a', tmp_path / 'b'))
    found, notes = finetune.find_strangers(moved / 'w', started)
    assert found == sorted((moved / 'others').rglob('*.png')) and len(found) == 3 and not notes
    found.pop().unlink()
    found_again, (note,) = finetune.find_strangers(moved / 'w', started)
    assert found_again == found and '1 photos that were there at the start are gone' in note
    shutil.rmtree(moved / 'others')
    monkeypatch.setattr(finetune, '_train', lambda *_: pytest.fail('it trained'))
    with pytest.raises(ValueError, match='others: 3 photos that were there at the start are gone: .*; put them back'):
        finetune.finetune(moved / 'p', moved / 'w', resume=True, **given | dict(others=moved / 'others'))


@pytest.mark.parametrize(
    ('names', 'word'),
    [(('red', 'white'), "holds folders of the classes 'red'"), (('copies',), 'holds no photo of none of the classes')],
)
def test_others_that_are_of_the_classes_are_refused(run_tool, weights, tmp_path, names, word):
    photos = write_photos(tmp_path / 'p', blue=4, red=4)
    for name in names:
        shutil.copytree(photos / 'red', tmp_path / 'others' / name)
    code, printed = run(run_tool, photos, weights, tmp_path / 'w', '--others', tmp_path / 'others')
    assert code == 1 and word in only_line(printed) and not (tmp_path / 'w').exists()


@pytest.mark.parametrize('fit', ['crop', 'pad', 'squash'])
def test_a_fit_is_that_of_the_test_pipeline_and_of_the_metadata(fit, tmp_path):
    photos = write_photos(tmp_path / 'p', red=4, blue=4)
    options = finetune.Options(str(photos), 'none', size=64, fit=fit, work_dir=str(tmp_path / 'w'))
    plan = finetune.make_plan(options)
    said = r'8 of 8 photos are smaller than 64 px, half of these \d\d px or less; --image-size 32 fits them'
    assert re.fullmatch(said, plan.photos.notes[0])
    config = cli.load_config(str(finetune.write_plan(plan)))
    described = fit_of(config.test_dataloader.dataset.pipeline)
    assert (described['fit'], described['size'], described['backend']) == (fit, [64, 64], 'pillow')
    dataset = CustomDataset(**{key: value for key, value in config.train_dataloader.dataset.items() if key != 'type'})
    assert dataset[0]['inputs'].shape == (3, 64, 64)


# ---- what is left out, and said -----------------------------------------------------------------------------------


def test_unreadable_photos_and_copies_are_said_and_left_out(run_tool, weights, tmp_path):
    photos = tmp_path / 'p'
    write_photos(photos / 'train', blue=6, red=6)
    write_photos(photos / 'val', seed=1, blue=2, red=2)
    (photos / 'train' / 'blue' / 'broken.jpg').write_bytes(b'no photo')
    shutil.copy(photos / 'val' / 'red' / 'red 1-0.png', photos / 'train' / 'red' / 'again.png')
    code, printed = run(run_tool, photos, weights, tmp_path / 'w', '--dry-run')
    assert code == 0, printed
    assert "1 unreadable, left out: 'blue/broken.jpg (" in printed
    assert '1 photos are also among those to measure on' in printed and 'red/again.png' in printed
    assert len((tmp_path / 'w' / 'train.txt').read_text().splitlines()) == 12


def test_a_photo_under_two_labels_is_left_out_wherever_it_lies(run_tool, weights, tmp_path):
    photos = write_photos(tmp_path / 'p', blue=6, red=6)
    shutil.copy(photos / 'red' / 'red 0-0.png', photos / 'blue' / 'copy.png')
    code, printed = run(run_tool, photos, weights, tmp_path / 'w', '--dry-run')
    assert code == 0 and '2 photos left out: the same photo under two labels' in printed
    listed = (tmp_path / 'w' / 'train.txt').read_text() + (tmp_path / 'w' / 'val.txt').read_text()
    assert len(listed.splitlines()) == 11 and 'copy.png' not in listed and 'red 0-0.png' not in listed


# ---- bad input ----------------------------------------------------------------------------------------------------


def make_bad(kind: str, root: Path) -> None:
    """Photos in ``root`` that nobody can train with, in the way of ``kind``."""
    write_photos(root, blue=4, red=4)
    if kind == 'no classes':
        for path in list(root.rglob('*.png')):
            path.rename(root / path.name)
        shutil.rmtree(root / 'blue')
        shutil.rmtree(root / 'red')
    elif kind == 'one class':
        shutil.rmtree(root / 'red')
    elif kind == 'one photo':
        for path in list((root / 'red').iterdir())[1:]:
            path.unlink()
    elif kind == 'empty class':
        (root / 'green').mkdir()
    elif kind == 'all under two labels':
        shutil.rmtree(root / 'blue')
        shutil.copytree(root / 'red', root / 'blue')
    elif kind == 'unreadable class':
        for path in (root / 'red').iterdir():
            path.write_bytes(b'no photo')
    elif kind == 'other classes':
        for name in ('blue', 'red'):
            (root / 'train').mkdir(exist_ok=True)
            (root / name).rename(root / 'train' / name)
        write_photos(root / 'val', blue=2, green=2)
    elif kind == 'gone':
        shutil.rmtree(root)


@pytest.mark.parametrize(
    'kind, word',
    [
        ('no classes', 'holds no classes'),
        ('one class', 'one class'),
        ('one photo', "one photo alone of 'red'"),
        ('empty class', "no photos in 'green'"),
        ('unreadable class', "nothing of 'red' is left to train on"),
        ('all under two labels', "nothing of 'blue', 'red' is left to train on"),
        ('other classes', 'green'),
        ('gone', 'photos: no such file or folder'),
    ],
)
def test_bad_photos_are_a_line_and_nothing_is_written(run_tool, weights, tmp_path, kind, word):
    make_bad(kind, tmp_path / 'photos')
    code, printed = run(run_tool, tmp_path / 'photos', weights, tmp_path / 'w')
    assert code == 1 and word in only_line(printed)
    assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize(
    'options, word',
    [
        (('--epohcs', '3'), "unrecognized arguments: --epohcs 3; did you mean '--epochs'?"),
        (('--epochs', '1.5'), "--epochs: '1.5'"),
        (('--size', '10'), "--image-size/--size: '10': a whole number from 32 to 1024"),
        (('--val', '1.5'), '--val 1.5'),
        (('--val', 'nowhere'), 'nowhere: no such file or folder'),
        (('--lr', 'nan'), "--lr: 'nan'"),
        (('--arch', 's9'), "--arch: invalid choice: 's9'"),
        (('--arch', 's1'), 'leave --arch out'),
        (('--weights', 'nowhere.pth'), 'nowhere.pth'),
        (('--weights', 'none', '--freeze', '1'), 'random weights'),
        (('--precision', '95'), "--precision: '95': a number from 0 to 1"),
        (('--others', 'nowhere'), 'nowhere: no such file or folder'),
        (('--others', __file__), 'holds no photo of none of the classes; left out: 1 unreadable'),
        (('--fit', 'stretch'), "--fit: invalid choice: 'stretch'"),
    ],
)
def test_bad_options_are_a_line_and_nothing_is_written(run_tool, weights, tmp_path, options, word):
    photos = write_photos(tmp_path / 'photos', blue=4, red=4)
    code, printed = run(run_tool, photos, weights, tmp_path / 'w', *options)
    assert code == 1 and word in only_line(printed)
    assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize(
    ('name', 'value', 'word'),
    [
        ('precision', 2, "'2': a number from 0 to 1"),
        ('epochs', 'one', "'one': a whole number from 1 on"),
        ('epochs', None, "'None': a whole number from 1 on"),
        ('size', 0, "'0': a whole number from 32 to 1024"),
        ('lr', -1, "'-1': a number above 0"),
        ('batch_size', 1.5, "'1.5': a whole number from 2 on"),
        ('early_stop', True, "'True': a whole number from 1 on"),
        ('freeze', 5, "'5': a whole number from -1 to 4"),
        ('seed', -1, "'-1': a whole number from 0 to"),
        ('fit', 'stretch', "'stretch': one of crop, pad, squash is needed"),
        ('arch', 's9', "'s9': one of s0, s1, s2, s3, s4 is needed"),
    ],
)
def test_bad_keywords_name_the_option_and_what_it_takes(tmp_path, name, value, word):
    photos = write_photos(tmp_path / 'photos', blue=4, red=4)
    with pytest.raises(ValueError, match=re.escape(f'{name}: {word}')):
        finetune.finetune(photos, tmp_path / 'w', **{'weights': 'none', name: value})
    assert not (tmp_path / 'w').exists()


def test_a_keyword_that_there_is_not_has_the_nearest(tmp_path):
    with pytest.raises(TypeError, match="finetune takes no 'epoch'; did you mean 'epochs'"):
        finetune.finetune(tmp_path, epoch=3)
    with pytest.raises(ValueError, match='size: .*9999'):
        finetune.finetune(tmp_path, image_size=9999)


def test_keywords_are_kept_as_the_tool_reads_them():
    """What JSON and configs hold: numbers of Python, and paths as text."""
    options = finetune.Options('p', epochs=np.int64(3), precision=1, val=Path('v'), lr=np.float32(0.5))
    kept = (options.epochs, options.precision, options.val, options.lr)
    assert kept == (3, 1.0, 'v', 0.5) and [*map(type, kept)] == [int, float, str, float]


def test_a_work_dir_among_the_photos_or_with_other_things_is_refused(run_tool, weights, tmp_path):
    photos = write_photos(tmp_path / 'photos', blue=4, red=4)
    code, printed = run(run_tool, photos, weights, photos / 'out')
    assert code == 1 and 'among the photos' in only_line(printed)
    (tmp_path / 'w').mkdir()
    (tmp_path / 'w' / 'diary.txt').write_text('dear')
    code, printed = run(run_tool, photos, weights, tmp_path / 'w')
    assert code == 1 and 'not empty' in only_line(printed)


# ---- the report's numbers -----------------------------------------------------------------------------------------


def test_results_by_class_by_hand():
    truth = np.eye(3, dtype=bool)[[0, 0, 1, 1]]
    scores = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.1, 0.7, 0.2], [0.95, 0.05, 0]])
    actual = Scores(list('abcd'), truth, scores, ('x', 'y', 'z'), multi_label=False)
    assert confusion(actual).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert [(row.count, row.recall, row.precision) for row in by_class(actual)] == [
        (2, 50, 50), (2, 50, 50), (0, None, None),
    ]  # fmt: skip
    assert worst(actual) == [3, 1]
    # Of three classes the own one's score does not tell how sure the wrong one was.
    unsure = np.array([[0.02, 0.5, 0.48], [0.1, 0.9, 0.0]])
    assert worst(Scores(list('ab'), truth[:2], unsure, ('x', 'y', 'z'), multi_label=False)) == [1, 0]


NAMES = (
    "it's",
    'a "b"',
    'back\\slash',
    '日本',
    'tri"""ple',
    '{brace}',
    '{{ fileDirname }}',
    '{{_base_.x}}',
    '{{$HOME:x}}',
)


@pytest.mark.parametrize('name', NAMES)
def test_configs_names_need_no_care(tmp_path, name):
    """Any class name, folder and command gives a config that reads back the same."""
    folder = tmp_path / name
    photos = reading.Photos(
        tuple(sorted(NAMES)),
        reading.PhotoList(folder, [reading.Photo(f'{i}.png', (name,)) for i, name in enumerate(NAMES)]),
        reading.PhotoList(folder, [reading.Photo('x.png', (name,))]),
    )
    options = finetune.Options('photos', 'none', 's1', size=64, work_dir=str(folder))
    plan = finetune.Plan(
        photos, numbers.make_recipe(6, 2, 4, 0.1), options, 'branched', command=f'a """ \\ \n {{x}} {name}'
    )
    path = finetune.write_plan(plan)
    config = cli.load_config(str(path))
    assert tuple(config.val_dataloader.dataset.metainfo.classes) == tuple(sorted(NAMES))
    assert config.train_dataloader.dataset.data_root == str(folder)
    assert config.train_dataloader.dataset.ann_file == str(folder / 'train.txt')
    assert config.work_dir == str(folder / 'run')
    assert config.model.backbone.arch == 's1' and config.model.head.in_channels == 1280


def test_each_name_of_photos_has_a_work_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ('data.v1', 'data.v2', 'data', 'labels.csv', 'labels', 'v1.labels.csv', 'v2.labels.csv', '..')
    folders = {finetune.Options(name).folder for name in names}
    assert len(folders) == len(names) and {folder.parent for folder in folders} == {tmp_path / 'work_dirs'}
    for words in ('data.v1/', './data.v1', str(tmp_path / 'data.v1')):
        assert finetune.Options(words).folder == finetune.Options('data.v1').folder


def test_weights_are_taken_from_an_address(weights, run_tool, tmp_path, monkeypatch):
    """As wherever a checkpoint is asked for: downloaded once."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    photos = write_photos(tmp_path / 'photos', red=4, blue=4)
    with Server() as server:
        url = server.add('/s0_fused.pth', weights.read_bytes())
        for name in ('first', 'second'):
            code, text = run(run_tool, photos, url, tmp_path / name, '--dry-run')
            assert code == 0, text
        assert server.requests == ['GET /s0_fused.pth']
    assert url in (tmp_path / 'first' / 'config.py').read_text()
