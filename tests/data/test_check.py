"""What is wrong with the data is said before the first step, in one line that names it."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, only_line
from mmengine.dataset import DefaultSampler, InfiniteSampler
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from mobileone_ext import cli
from mobileone_ext.data.check import check_loaders, leave_out_last_of_one, prepare_data, read_by_files
from mobileone_ext.data.classes import classes_in
from mobileone_ext.data.dataset import CustomDataset
from mobileone_ext.engine.runner import Runner

pytestmark = pytest.mark.filterwarnings('ignore')
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def write_photos(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (40, 30), 'gray').save(root / name)


def config_of(root, classes=2, **dataset):
    config = cli.load_config(str(ROOT / TINY))
    config.model.head.num_classes = classes
    for name in LOADERS:
        config[name].dataset.update(data_root=str(root), **dataset)
        config[name].dataset.pop('indices', None)
        config[name].update(num_workers=0, persistent_workers=False)
    return config


def check(config, *names):
    """As a run does before its first step; the data sets that it then has."""
    prepare_data(config, *names)
    loaders = {name.removesuffix('_dataloader'): Runner.build_dataloader(config[name]) for name in names}
    check_loaders(loaders, config)
    return [loader.dataset for loader in loaders.values()]


@pytest.mark.parametrize('kind', ['CustomDataset', 'mmpretrain.CustomDataset', 'mobileone_ext.CustomDataset'])
def test_hidden_folders_are_no_classes_and_every_photo_counts(tmp_path, capsys, kind):
    for split in ('train', 'val'):
        root = tmp_path / split
        write_photos(root, 'a/1.jpg', 'a/2.PNG', 'a/3.webp', 'a/4.tif', 'b/deep/5.bmp', 'b/6.avif', 'loose.jpg')
        write_photos(root, '.ipynb_checkpoints/1-checkpoint.jpg', '__MACOSX/2.jpg', 'a/.thumbnails/3.jpg', 'a/._4.jpg')
        (root / 'b' / 'notes.txt').write_text('')
    built, *_ = check(config_of(tmp_path, type=kind), *LOADERS)
    hidden = "1 hidden, 1 hidden '.ipynb_checkpoints', 1 hidden '.thumbnails', 1 hidden '__MACOSX'"
    expected = f'{tmp_path / "train"}: left out: 1 .txt, {hidden}, 1 photos in no class folder\n'
    assert expected in capsys.readouterr().out
    assert len(built) == 6 and built.metainfo['classes'] == ('a', 'b')
    assert [built.get_data_info(i)['gt_label'] for i in range(6)] == [0, 0, 0, 0, 1, 1]


def test_extensions_of_a_data_set_are_heeded(tmp_path, capsys):
    write_photos(tmp_path / 'train', 'a/1.jpg', 'a/2.webp', 'b/3.JPG')
    (built,) = check(config_of(tmp_path, extensions=('.jpg',)), 'train_dataloader')
    assert 'left out: 1 .webp' in capsys.readouterr().out and len(built) == 2


def test_an_empty_class_is_refused_in_training_and_said_in_validation(tmp_path, capsys):
    write_photos(tmp_path / 'train', 'a/1.jpg', 'b/2.jpg')
    write_photos(tmp_path / 'val', 'a/1.jpg')
    check(config_of(tmp_path), *LOADERS)
    assert "val: no images of 'b'" in capsys.readouterr().out
    (tmp_path / 'train' / 'b' / '2.jpg').unlink()
    with pytest.raises(ValueError, match=r"train: no images of 'b': a class that is trained needs some"):
        check(config_of(tmp_path), 'train_dataloader')


def test_folders_that_are_joined_hold_the_classes_together(tmp_path):
    write_photos(tmp_path, 'p/train/a/1.jpg', 'p/train/b/2.jpg', 'q/a/3.jpg')
    (tmp_path / 'p' / 'train' / 'c').mkdir()
    inner = [dict(type='CustomDataset', data_root=str(tmp_path / name), pipeline=[]) for name in ('p/train', 'q')]
    config = config_of(tmp_path, classes=3)
    config.train_dataloader.dataset = dict(type='ConcatDataset', datasets=inner)
    with pytest.raises(ValueError, match=f"{tmp_path}/p/train, {tmp_path}/q: no images of 'c'"):
        check(config, 'train_dataloader')
    write_photos(tmp_path, 'q/c/4.jpg')
    (built,) = check(config, 'train_dataloader')
    assert [built.get_data_info(i)['gt_label'] for i in range(4)] == [0, 1, 0, 2]


def test_the_names_of_imagenet_are_those_of_a_head_of_as_many():
    """Also where an earlier run wrote the config, whose data set is ours."""
    for kind in ('ImageNet', 'mobileone_ext.ImageNet'):
        for count, expected in ((1000, 'ImageNet'), (5, 'CustomDataset'), (None, 'CustomDataset')):
            dataset = dict(type=kind, data_root='x')
            read_by_files(dataset, count)
            assert dataset['type'] == f'mobileone_ext.{expected}'


def test_the_parts_of_a_split_are_no_classes_to_train(tmp_path):
    """Whatever they are called, unless the config names them."""
    write_photos(tmp_path, 'learn/a/1.jpg', 'learn/b/2.jpg', 'exam/a/3.jpg', 'exam/b/4.jpg')
    with pytest.raises(ValueError, match=r"'exam', 'learn' hold folders of the same names.*data_prefix=DIR"):
        check(config_of(tmp_path, data_prefix=''), 'train_dataloader')
    with pytest.raises(ValueError, match='metainfo.classes=.* without --classes-from-data'):
        classes_in(dict(type='CustomDataset', data_root=str(tmp_path)))
    check(config_of(tmp_path, data_prefix='', metainfo=dict(classes=['exam', 'learn'])), 'train_dataloader')


def test_letters_composed_and_decomposed(tmp_path, capsys):
    """One class, in two folders of a split as in two beside each other."""
    write_photos(tmp_path / 'train', 'caf\u00e9/1.jpg', 'cafz/2.jpg')
    write_photos(tmp_path / 'val', 'cafe\u0301/3.jpg', 'cafz/4.jpg', 'caf\u00e9/5.jpg')
    _, built, _ = check(config_of(tmp_path), *LOADERS)
    said = capsys.readouterr().out
    assert "val: folders that differ only in how letters are composed are one class: 'caf\u00e9'\n" in said
    assert 'train: folders' not in said
    assert built.metainfo['classes'] == ('cafz', 'caf\u00e9')
    labels = {Path(built.get_data_info(i)['img_path']).name: built.get_data_info(i)['gt_label'] for i in range(3)}
    assert labels == {'3.jpg': 1, '4.jpg': 0, '5.jpg': 1}
    named = CustomDataset(data_root=str(tmp_path), data_prefix='train', metainfo=dict(classes=['cafe\u0301', 'cafz']))
    assert [named.get_data_info(i)['gt_label'] for i in range(2)] == [1, 0]


@pytest.mark.parametrize('foreign, hidden', [(0, 1), (1, 0)])
def test_a_thousand_foreign_ids_are_not_imagenet_s(tmp_path, foreign, hidden):
    """The names of ImageNet go to the folders of its ids alone, whatever else lies there."""
    folder = pytest.importorskip('timm.data').__path__[0]
    ids = Path(folder, '_info', 'imagenet_synsets.txt').read_text().split()
    for name in ids[foreign:] + ['n99999999'] * foreign + ['.ipynb_checkpoints'] * hidden:
        write_photos(tmp_path / 'train', f'{name}/1.jpg')
    config = config_of(tmp_path, classes=1000, type='ImageNet', split='train', data_prefix='')
    if foreign:
        with pytest.raises(ValueError, match="'n01443537', .*none of the 1000 classes 'tench"):
            check(config, 'train_dataloader')
    else:
        (built,) = check(config, 'train_dataloader')
        assert built.CLASSES[1].startswith('goldfish') and built.get_data_info(1)['gt_label'] == 1


@pytest.mark.parametrize('name', ['list.txt', 'list.json', 'names.txt'])
@pytest.mark.parametrize('text', ['caf\u00e9'.encode('cp1252'), b'\xef\xbb\xbfcaf'])
def test_text_that_is_no_plain_utf8_is_refused_by_the_name_of_its_file(tmp_path, name, text):
    write_photos(tmp_path / 'train', 'a/1.jpg', 'b/2.jpg')
    (tmp_path / name).write_bytes(text)
    option = dict(classes=str(tmp_path / name)) if name == 'names.txt' else dict(ann_file=str(tmp_path / name))
    config = config_of(tmp_path)
    config.train_dataloader.dataset.update(option)
    with pytest.raises(ValueError, match=f'{name}.*(not UTF-8 text .*; save it as UTF-8|byte order mark; save it)'):
        check(config, 'train_dataloader')


LINES = {
    'no label': (['a/1.jpg 0', 'a/1.jpg'], "line 2: 'a/1.jpg': expected is an image and its label"),
    'a name': (['a/1.jpg cat'], 'line 1: '),
    'negative': (['a/1.jpg 0', 'a/1.jpg 1', 'a/1.jpg -1'], 'line 3: '),
    'blank': (['a/1.jpg 0', '', 'a/1.jpg 1'], "line 2: ''"),
    'too large': (['a/1.jpg 0', 'a/1.jpg 2'], 'a/1.jpg has label 2, and the head has 2 classes, 0 .. 1'),
    'no such image': (['a/1.jpg 0', 'a/9.jpg 1'], 'no such image'),
    'nothing': ([], 'no images; expected are'),
}


@pytest.mark.parametrize('kind', LINES)
def test_lines_of_an_annotation_file(tmp_path, kind):
    write_photos(tmp_path / 'val', 'a/1.jpg')
    lines, word = LINES[kind]
    listed = tmp_path / 'list.txt'
    listed.write_text(''.join(f'{line}\n' for line in lines))
    with pytest.raises((ValueError, OSError), match=word) as raised:
        check(config_of(tmp_path, ann_file=str(listed)), 'test_dataloader')
    assert kind == 'too large' or str(listed) in str(raised.value)


def test_a_line_of_an_annotation_file_is_named_by_the_tool(tmp_path, run_tool):
    write_photos(tmp_path / 'train', 'a/1.jpg')
    write_photos(tmp_path / 'val', 'a/1.jpg')
    (tmp_path / 'list.txt').write_text('a/1.jpg 0\na/1.jpg\n')
    options = [f'{name}.dataset.data_root={tmp_path}' for name in LOADERS]
    options += ['train_dataloader.dataset.ann_file=list.txt', 'model.head.num_classes=2']
    code, text = run_tool('train', TINY, '--work-dir', tmp_path / 'run', '--cfg-options', *options)
    assert code == 1 and 'list.txt, line 2: ' in only_line(text) and not list((tmp_path / 'run').glob('*.pth'))


def test_an_annotation_file_that_is_fine(tmp_path):
    write_photos(tmp_path / 'val', 'a/1 x.jpg')
    listed = tmp_path / 'list.txt'
    listed.write_text('a/1 x.jpg 1\na/1 x.jpg 0\n')
    (built,) = check(config_of(tmp_path, ann_file=str(listed)), 'test_dataloader')
    assert [built.get_data_info(i)['gt_label'] for i in range(2)] == [1, 0]


@pytest.mark.parametrize('labels, word', [([0, 2], 'label 2'), ([[0], [1, 7]], 'label 7'), ([0, 1], '')])
def test_labels_of_an_openmmlab_file(tmp_path, labels, word):
    images = [dict(img_path='a.jpg', gt_label=label) for label in labels]
    (tmp_path / 'list.json').write_text(json.dumps(dict(metainfo=dict(classes=['x', 'y']), data_list=images)))
    write_photos(tmp_path / 'val', 'a.jpg')
    kind = 'MultiLabelDataset' if isinstance(labels[0], list) else 'mmpretrain.BaseDataset'
    config = config_of(tmp_path, type=kind, ann_file='list.json')
    if word:
        with pytest.raises(ValueError, match=f'test: .*a.jpg has {word}, and the head has 2 classes'):
            check(config, 'test_dataloader')
    else:
        check(config, 'test_dataloader')


class Labeled(torch.utils.data.Dataset):
    """A data set of its own making."""

    def __init__(self, labels, classes=None):
        self.labels, self.metainfo = labels, dict(classes=classes) if classes else {}

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return index

    def get_cat_ids(self, index):
        return [self.labels[index]]

    def get_data_info(self, index):
        return dict(img_path=f'{index}.jpg')


class Twice(Labeled):
    def __init__(self, dataset):
        super().__init__(dataset.labels * 2)
        self.dataset = dataset


@pytest.mark.parametrize('wrap', [lambda dataset: dataset, Twice])
def test_labels_of_any_data_set(wrap):
    config = config_of('nowhere')
    check_loaders(dict(train=DataLoader(wrap(Labeled([0, 1])))), config)
    with pytest.raises(ValueError, match=r'train: 1\.jpg has label 2, and the head has 2 classes, 0 \.\. 1'):
        check_loaders(dict(train=DataLoader(wrap(Labeled([0, 2])))), config)


def test_what_is_built_agrees():
    config = config_of('nowhere')
    loaders = dict(train=DataLoader(Labeled([0], ('x', 'y'))), val=DataLoader(Labeled([0], ('y', 'x'))))
    with pytest.raises(ValueError, match="val: class 0 is 'y', in train it is 'x'"):
        check_loaders(loaders, config)
    with pytest.raises(ValueError, match='test: its data set is empty'):
        check_loaders(dict(test=DataLoader(Labeled([]))), config)


def test_indices_that_leave_no_images(tmp_path):
    write_photos(tmp_path / 'val', 'a/1.jpg', 'b/2.jpg')
    config = config_of(tmp_path)
    config.test_dataloader.dataset.indices = 0
    with pytest.raises(ValueError, match='test_dataloader.dataset.indices=0: leaves no images'):
        check(config, 'test_dataloader')


def test_no_image_is_dropped_from_the_figures(tmp_path, run_tool, tiny_run, digits):
    options = [f'test_dataloader.dataset.data_root={digits}', 'test_dataloader.drop_last=True']
    options += ['test_dataloader.batch_size=50', 'test_dataloader.num_workers=0']
    out = tmp_path / 'out.json'
    arguments = (TINY, tiny_run / 'epoch_4.pth', '--work-dir', tmp_path, '--out', out, '--cfg-options', *options)
    code, text = run_tool('test', *arguments, 'test_dataloader.persistent_workers=False')
    assert code == 0 and 'test_dataloader.drop_last=True would leave images out' in text
    top1 = json.loads(out.read_text())['accuracy/top1']
    assert round(top1 * 3.6, 3) == round(top1 * 3.6), 'of 360 images'


@pytest.mark.parametrize(
    'images, batch, norm, dropped',
    [(9, 4, True, True), (9, 4, False, False), (8, 4, True, False), (5, 1, True, False), (10, 4, True, False)],
)
def test_a_last_batch_of_one_image(images, batch, norm, dropped, capsys):
    data = Labeled([0] * images)
    loader = DataLoader(data, batch_size=batch, sampler=DefaultSampler(data, seed=0))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4) if norm else nn.Identity())
    leave_out_last_of_one(loader, model)
    sizes = [len(indices) for indices in loader.batch_sampler]
    assert len(sizes) == len(loader) and (1 not in sizes or batch == 1 or not norm)
    assert ('the last would be alone' in capsys.readouterr().out) == dropped


def test_one_image_in_all():
    data = Labeled([0])
    model = nn.BatchNorm2d(4)
    with pytest.raises(ValueError, match='one image in all'):
        leave_out_last_of_one(DataLoader(data, batch_size=4, sampler=DefaultSampler(data, seed=0)), model)
    endless = DataLoader(data, batch_size=4, sampler=InfiniteSampler(data, seed=0))
    leave_out_last_of_one(endless, model)
