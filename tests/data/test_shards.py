"""Tar shards give what folders give: tensors, order, figures; what is wrong with one is a line with its name."""

import gzip
import io
import json
import pickle
import re
import subprocess
import tarfile

import pytest
import torch
from conftest import ROOT, TINY, data_options, only_line
from mmengine.registry import DefaultScope
from PIL import Image
from sharding import AS_TEXT, write_shard, write_shards
from torch.utils.data import DataLoader

from mobileone_ext.data import shards
from mobileone_ext.data.shards import expanded, photos_in
from mobileone_ext.registry import DATASETS

PIPELINE = [
    dict(type='mobileone_ext.LoadImageFromFile'),
    dict(type='Resize', scale=(32, 32), backend='pillow'),
    dict(type='PackInputs'),
]
IN_SHARDS = [f'{loader}.dataset.type=mobileone_ext.Shards' for loader in ('train_dataloader', 'val_dataloader')]


@pytest.fixture(autouse=True)
def scope():
    if DefaultScope.get_current_instance() is None:
        DefaultScope.get_instance('shards', scope_name='mmpretrain')


def build(root, kind='Shards', **options):
    return DATASETS.build(dict(type=f'mobileone_ext.{kind}', data_root=str(root), **{'pipeline': PIPELINE, **options}))


@pytest.fixture(scope='session')
def sharded(digits, tmp_path_factory):
    root = tmp_path_factory.mktemp('sharded')
    for part in ('train', 'val'):
        write_shards(digits / part, root / part)
    return root


def png(level=7, size=(4, 4)):
    file = io.BytesIO()
    Image.new('RGB', size, (level, 0, 255 - level)).save(file, 'png')
    return file.getvalue()


@pytest.mark.parametrize('kind', AS_TEXT)
def test_the_tensors_and_the_order_of_folders(digits, tmp_path, kind):
    write_shards(digits / 'val', tmp_path / 'val', kind=kind)
    folders = build(digits, 'CustomDataset', data_prefix='val')
    for actual in (build(tmp_path, data_prefix='val'), build(tmp_path, split='val/val-{000..002}.tar')):
        assert len(actual) == len(folders) == 360
        for one, other in zip(actual, folders):
            assert torch.equal(one['inputs'], other['inputs'])
            assert one['data_samples'].gt_label == other['data_samples'].gt_label
    assert actual.metainfo.get('classes') is None  # numbers


@pytest.mark.parametrize('start', ['fork', pytest.param('spawn', marks=pytest.mark.slow)])
def test_workers_read_the_same(sharded, digits, start):
    """From a data set that this process has read from before."""
    folders = build(digits, 'CustomDataset', data_prefix='val', indices=60)
    actual = build(sharded, data_prefix='val', indices=60)
    assert actual[0] and pickle.loads(pickle.dumps(actual))[59]['inputs'].shape == (3, 32, 32)
    options = dict(batch_size=None, num_workers=1, multiprocessing_context=start)
    for one, other in zip(DataLoader(actual, **options), folders, strict=True):
        assert torch.equal(one['inputs'], other['inputs'])


def test_names_are_classes_and_go_by_name(tmp_path):
    members = [
        ('b/1.png', png()),
        ('b/1.cls', b'zebra'),
        ('a.x.png', png()),
        ('a.png', png(9)),
        ('a.cls', b' cafe\xcc\x81\n'),
    ]
    write_shard(tmp_path / 'a.tar', [('./' + name, data) for name, data in members] + [('._a.png', b'mac')])
    actual = build(tmp_path)
    assert actual.metainfo['classes'] == ('café', 'zebra')
    assert [actual.get_cat_ids(index) for index in range(2)] == [[1], [0]] and len(actual) == 2
    assert int(actual[1]['inputs'][2, 0, 0]) == 9
    other = build(tmp_path, classes=['zebra', 'yak', 'cafe\u0301'])
    assert [other.get_cat_ids(index) for index in range(2)] == [[0], [2]]
    with pytest.raises(ValueError, match=r"a\.tar: a\.png is of 'café', none of the classes 'zebra'"):
        build(tmp_path, classes=['zebra'])


def test_a_shell_makes_them(tmp_path, digits):
    """The commands of docs/data.md."""
    text = (ROOT / 'docs/data.md').read_text(encoding='utf-8')
    script = text.partition('```bash\n')[2].partition('```')[0]
    script = script.replace('.jpg', '.png').replace('-l 10000', '-l 500')
    (tmp_path / 'photos').symlink_to(digits)
    subprocess.run(['bash', '-euc', script], cwd=tmp_path, check=True)
    assert len([*tmp_path.glob('shards/train/train-00?.tar')]) == 3
    one = re.search(r'`(tar --sort=name .*?)`', text)[1].replace('shards/val/', 'shards/')
    subprocess.run(one.split(), cwd=tmp_path, check=True)
    folders = build(digits, 'CustomDataset', data_prefix='val')
    for place in ('shards/val', 'shards/val.tar'):
        actual = build(tmp_path, data_prefix=place)
        assert len(actual) == 360 and actual.metainfo['classes'] == folders.metainfo['classes']
        for index in range(0, 360, 7):
            assert torch.equal(actual[index]['inputs'], folders[index]['inputs'])
            assert actual.get_cat_ids(index) == folders.get_cat_ids(index)


def test_a_shard_is_walked_once(tmp_path, monkeypatch):
    shard = write_shard(tmp_path / 'a.tar', [('a.png', png()), ('a.cls', b'3')])
    index = tmp_path / 'a.tar.index.json'
    first = photos_in(shard)
    monkeypatch.setattr(tarfile, 'open', None)
    assert photos_in(shard) == [list(photo) for photo in first]
    kept = index.read_text()
    for damaged in ('{', '[]', '{"of": 3}'):
        index.write_text(damaged)
        assert photos_in(shard) == first and index.read_text() == kept
    monkeypatch.undo()
    write_shard(shard, [('a.png', png()), ('a.cls', b'4'), ('b.png', png()), ('b.cls', b'5')])
    assert [photo[-1] for photo in photos_in(shard)] == [4, 5]
    monkeypatch.setattr(shards, 'write_text', lambda *_: (_ for _ in ()).throw(PermissionError))
    index.unlink()
    assert [photo[-1] for photo in photos_in(shard)] == [4, 5]


def cut(keep):
    return lambda shard: shard.write_bytes(shard.read_bytes()[:keep])


def link(shard):
    with tarfile.open(shard, 'a') as tar:
        member = tarfile.TarInfo('b.png')
        member.type, member.linkname = tarfile.SYMTYPE, 'a.png'
        tar.addfile(member)


GOOD = [('a.png', png(size=(40, 40))), ('a.cls', b'0')]
MORE = [*GOOD, ('b.png', png(size=(40, 40))), ('b.cls', b'1')]
BAD = {
    'cut in a member': (GOOD, cut(600), 'tar archive, at a.png: '),
    'cut in a header': (MORE, cut(2048 + 300), 'not a whole tar archive: it is cut off or damaged after a.cls'),
    'cut between members': (MORE, cut(2048), 'not a whole tar archive: it is cut off or damaged after a.cls'),
    'cut after the last': (GOOD, cut(2048), 'not a whole tar archive: it is cut off or damaged after a.cls'),
    'compressed': (
        GOOD,
        lambda shard: shard.write_bytes(gzip.compress(shard.read_bytes())),
        'not a whole, uncompressed',
    ),
    'empty': ([], lambda shard: None, 'no photos'),
    'a link': (GOOD, link, 'b.png is a link'),
    'without a label': ([*GOOD, ('c/b.png', png())], lambda shard: None, 'c/b.png has no label; c/b.cls'),
    'without any label': ([('a.png', png())], lambda shard: None, 'a.png has no label; a.cls'),
    'an empty label': ([('a.png', png()), ('a.cls', b'\n')], lambda shard: None, 'a.png has no label'),
    'not JSON': ([('a.png', png()), ('a.json', b'{')], lambda shard: None, 'a.json: no label can be read'),
    'JSON without': ([('a.png', png()), ('a.json', b'{"width": 3}')], lambda shard: None, 'a.png has no label'),
    'not text': ([('a.png', png()), ('a.txt', b'\xff')], lambda shard: None, 'a.txt: no label can be read'),
}


@pytest.mark.parametrize('case', BAD)
def test_what_is_wrong_with_a_shard_is_named(tmp_path, case):
    members, harm, says = BAD[case]
    shard = write_shard(tmp_path / 'a.tar', members)
    harm(shard)
    with pytest.raises(ValueError) as raised:
        photos_in(shard)
    assert str(raised.value).startswith(f'{shard}: ') and says in str(raised.value)
    assert not (tmp_path / 'a.tar.index.json').exists()


def test_a_photo_that_cannot_be_read_is_named(tmp_path):
    write_shard(tmp_path / 'a.tar', [('d/a.png', b'no photo'), ('d/a.cls', b'0')])
    with pytest.raises(ValueError, match=r'a\.tar:512\+8:d/a\.png: not a readable image'):
        build(tmp_path)[0]


def test_places():
    assert expanded('a-{08..10}.tar') == ['a-08.tar', 'a-09.tar', 'a-10.tar']
    assert expanded('{1..2}/{0..1}.tar') == ['1/0.tar', '1/1.tar', '2/0.tar', '2/1.tar']
    assert expanded('a.tar') == ['a.tar']


def test_the_tools_take_them(sharded, digits, tiny_run, tmp_path, run_tool):
    rest = [option for option in data_options(sharded) if 'test_' not in option]
    figures = []
    for name, options in (
        ('folders', data_options(digits)),
        ('shards', [*data_options(sharded), 'test_dataloader.dataset.type=mobileone_ext.Shards']),
    ):
        out = tmp_path / f'{name}.json'
        code, printed = run_tool('test', TINY, tiny_run / 'epoch_4.pth', '--out', out, '--cfg-options', *options)
        assert code == 0, printed
        figures.append(json.loads(out.read_text()))
    assert figures[0]['accuracy/top1'] == figures[1]['accuracy/top1'] and figures[1]['num_images'] == 360
    code, printed = run_tool('train', TINY, '--dry-run', '--classes-from-data', '--cfg-options', *IN_SHARDS, *rest)
    assert code == 0 and '10 classes of mobileone_ext.Shards: 0, 1' in printed, printed


@pytest.mark.parametrize(
    'label, option, says',
    [
        (b'12', '', 'train-000.tar:512+{}:x.png has label 12, and the head has 10 classes, 0 .. 9'),
        (b'-1', '', ':x.png has label -1'),
        (b'3', '.data_prefix=none', 'none: no such shard; data_prefix'),
        (b'3', '.data_prefix=train-{0..1}.tar', 'train-0.tar: no such shard'),
        (b'3', '.data_prefix=.', '*.tar: no such shard'),
    ],
)
def test_a_slip_is_a_line_before_the_first_step(tmp_path, run_tool, label, option, says):
    members = [(f'{key}.{end}', data) for key in 'xyz' for end, data in (('png', png()), ('cls', label))]
    for part in ('train', 'val'):
        write_shard(tmp_path / part / f'{part}-000.tar', members)
    options = [*IN_SHARDS, *data_options(tmp_path), 'train_dataloader.dataset.indices=3']
    if option:
        options.append('train_dataloader.dataset' + option)
    code, printed = run_tool('train', TINY, '--work-dir', tmp_path / 'run', '--cfg-options', *options)
    assert code == 1 and says.format(len(png())) in only_line(printed)
