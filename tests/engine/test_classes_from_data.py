"""tools/train.py --classes-from-data: a config of ImageNet's, and photos of one's own classes."""

import json
import shutil

import pytest
from conftest import ROOT, TINY, only_line

from mobileone_ext import cli
from mobileone_ext.config import override
from mobileone_ext.data.check import check_loaders, prepare_data, read_by_files
from mobileone_ext.data.classes import classes_in
from mobileone_ext.data.nested import innermost
from mobileone_ext.engine.runner import Runner
from mobileone_ext.engine.train import use_classes_of_data, use_data

NAMES = ['[red] fox', 'cat', 'dog|wolf', 'gnu', 'owl']
# The tiny digits run with the data set and the evaluator of the ImageNet configs, and their head's count.
IMAGENET = f"""
_base_ = '{ROOT / TINY}'
model = dict(head=dict(num_classes=1000), data_preprocessor=dict(num_classes=1000))
loader = dict(num_workers=0, persistent_workers=False)
imagenet = dict(type='ImageNet', data_root='data/imagenet', data_prefix='', indices=None)
train_dataloader = dict(batch_size=8, dataset=dict(split='train', **imagenet), **loader)
val_dataloader = dict(dataset=dict(split='val', **imagenet), **loader)
test_dataloader = val_dataloader
"""


@pytest.fixture
def photos(digits, tmp_path):
    """Photos of five classes in folders, as train and val; validation has no owl."""
    for split, count in (('train', 6), ('val', 3)):
        for name, digit in zip(NAMES, sorted((digits / 'train').iterdir())):
            (tmp_path / 'photos' / split / name).mkdir(parents=True)
            for path in sorted(digit.iterdir())[:count]:
                shutil.copy(path, tmp_path / 'photos' / split / name)
    shutil.rmtree(tmp_path / 'photos/val/owl')
    return tmp_path / 'photos'


@pytest.fixture
def config(tmp_path):
    (tmp_path / 'imagenet.py').write_text(IMAGENET)
    return tmp_path / 'imagenet.py'


def test_a_run_of_ones_own_classes_and_what_follows_need_no_other_option(run_tool, config, photos, tmp_path):
    work = tmp_path / 'run'
    train = [config, '--data', photos, '--epochs', 1, '--seed', 0, '--work-dir', work]
    code, text = run_tool('train', *train)
    assert code == 1 and not list(work.glob('*.pth'))
    line = only_line(text)
    assert f'{photos}/train: class folders ' in line and 'of the 1000 classes' in line and '--classes-from-data' in line
    code, text = run_tool('train', *train, '--classes-from-data')
    assert code == 0 and text.count(f'5 classes of {photos}/train: {", ".join(NAMES)}\n') == 1, text

    saved, checkpoint = work / 'imagenet.py', work / 'epoch_1.pth'
    code, text = run_tool('test', saved, checkpoint, '--work-dir', tmp_path / 't', '--out', tmp_path / 'm.json')
    assert code == 0, text
    metrics = json.loads((tmp_path / 'm.json').read_text())
    assert (metrics['num_images'], metrics['classes']) == (12, NAMES)
    code, text = run_tool('reparam', saved, checkpoint, tmp_path / 'fused.pth')
    assert code == 0, text
    code, text = run_tool('predict', saved, tmp_path / 'fused.pth', photos / 'val/cat')
    assert code == 0 and all(name in text for name in NAMES), text

    more = [config, '--data', photos, '--epochs', 2, '--work-dir', work, '--resume']
    code, text = run_tool('train', *more, '--classes-from-data')
    assert code == 0 and 'resumed epoch: 1' in text, text
    code, text = run_tool('train', *more)
    assert code == 1 and '--classes-from-data' in only_line(text)
    # The config as it came: its data set has ImageNet's classes.
    data = f'test_dataloader.dataset.data_root={photos}'
    code, text = run_tool('test', config, checkpoint, '--work-dir', tmp_path / 't', '--cfg-options', data)
    assert code == 1 and "'tench, Tinca tinca'" in only_line(text) and 'classes of the checkpoint' in text


def test_every_count_of_classes_follows_but_a_teachers(config, photos):
    options = {
        'model.train_cfg': dict(augments=[dict(type='Mixup', alpha=0.2)]),
        'model.head.loss': dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=1000),
        'val_evaluator': [dict(type='Accuracy'), dict(type='ConfusionMatrix', num_classes=1000)],
        'train_dataloader.dataset': dict(
            type='ConcatDataset',
            datasets=[
                dict(type='RepeatDataset', times=2, dataset=dict(type='ImageNet', split=split, data_root=str(photos)))
                for split in ('val', 'train')
            ],
        ),
    }
    read = override(cli.load_config(str(config)), options)
    read.model.teacher = dict(head=dict(num_classes=1000))
    use_data(read, str(photos))
    use_classes_of_data(read)
    counts = read.model.head, read.model.data_preprocessor, read.model.head.loss, read.val_evaluator[1]
    assert [part.num_classes for part in counts] == [5] * 4
    assert read.model.teacher.head.num_classes == 1000
    for dataset in innermost(read.train_dataloader.dataset):
        assert (dataset.type, dataset.metainfo.classes) == ('mobileone_ext.CustomDataset', NAMES)
    assert read.val_dataloader.dataset.data_prefix == 'val' and 'metainfo' not in read.val_dataloader.dataset


def test_a_head_that_counts_nothing_is_named(config, photos):
    read = override(cli.load_config(str(config)), {'model.head': dict(type='ClsHead')})
    use_data(read, str(photos))
    with pytest.raises(ValueError, match='model.head has no num_classes to set'):
        use_classes_of_data(read)
    with pytest.raises(OSError, match='No such file or directory: .*data/imagenet/train'):
        use_classes_of_data(cli.load_config(str(config)))


LISTS = {  # lines of an annotation file, and the classes or what is wrong with them
    'a folder a label': (['b/1.png 0', 'a/2.png 1', 'b/3.png 0'], ['b', 'a']),
    'a label in two folders': (['a/1.png 0', 'b/2.png 0', 'c/3.png 1'], ['0', '1']),
    'two labels in a folder': (['a/1.png 0', 'a/2.png 1'], ['0', '1']),
    'no folders': (['1.png 0', '2.png 1'], ['0', '1']),
    'a gap': (['a/1.png 0', 'b/2.png 999999999'], 'no image has label 1, some have label 999999999'),
    'one label': (['a/1.png 0'], 'holds one class alone, '),
}


@pytest.mark.parametrize('lines, expected', LISTS.values(), ids=LISTS)
def test_classes_of_a_list(tmp_path, lines, expected):
    (tmp_path / 'meta').mkdir()
    (tmp_path / 'meta/train.txt').write_text('\n'.join(lines))
    dataset = dict(type='ImageNet', data_root=str(tmp_path), split='train')
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=f'train.txt: {expected}'):
            classes_in(dataset)
        return
    assert list(classes_in(dataset)) == expected
    given = ['x', 'y']
    assert list(classes_in(dict(dataset, metainfo=dict(classes=given)))) == given
    read_by_files(dataset)
    assert dataset == dict(
        type='mobileone_ext.CustomDataset', data_root=str(tmp_path), data_prefix='train', ann_file='meta/train.txt'
    )


@pytest.mark.parametrize('labels, said', [((0, 1, 1), 'labels 0 .. 1, and the head has 1000'), ((0, 1, 1000), None)])
def test_a_list_of_other_classes_than_the_heads_names_the_option(config, photos, capsys, labels, said):
    (photos / 'meta').mkdir()
    files = sorted((photos / 'train').rglob('*.png'))[: len(labels)]
    lines = [f'{file.relative_to(photos / "train")} {label}\n' for file, label in zip(files, labels)]
    (photos / 'meta/train.txt').write_text(''.join(lines))
    read = cli.load_config(str(config))
    use_data(read, str(photos))
    prepare_data(read, 'train_dataloader')
    loaders = dict(train=Runner.build_dataloader(read.train_dataloader))
    if said is None:
        with pytest.raises(ValueError, match='label 1000, .*; --classes-from-data takes'):
            check_loaders(loaders, read)
    else:
        check_loaders(loaders, read)
        assert f'{said} classes; --classes-from-data takes' in capsys.readouterr().out
