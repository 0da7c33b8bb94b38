"""Classes by name: from folders, lists and checkpoints, in training, validation, testing, predicting and exporting."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, data_options, only_line
from mmpretrain.datasets.categories import IMAGENET_CATEGORIES
from PIL import Image

from mobileone_ext import cli
from mobileone_ext.checkpoints.convert import convert
from mobileone_ext.checkpoints.load import in_order, load_weights
from mobileone_ext.checkpoints.training import read_training_checkpoint
from mobileone_ext.data.classes import check_same, class_names, given_names
from mobileone_ext.data.dataset import CustomDataset
from mobileone_ext.deploy.cost import count_multiply_adds
from mobileone_ext.deploy.fuse import build_model
from mobileone_ext.engine.runner import Runner

pytestmark = pytest.mark.filterwarnings('ignore')
COLORS = dict(ant=(200, 40, 40), bee=(40, 200, 40), cow=(40, 40, 200))
EPOCHS = 14
TINY_CLASSES = ('--cfg-options', 'model.head.num_classes=3')


def write_photos(root, folders, count=6, seed=0):
    """``count`` noisy photos of one color in each folder; ``folders`` maps names to colors."""
    rng = np.random.default_rng(seed)
    for name, color in folders.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(np.array(color) + rng.integers(-30, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f'{number}.png')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp('photos')
    write_photos(root / 'train', COLORS, 16)
    write_photos(root / 'val', COLORS, seed=1)
    return root


def options(root, *more):
    return [*TINY_CLASSES, *data_options(root), *more]


@pytest.fixture(scope='module')
def trained(photos, tmp_path_factory):
    """Work dir of a network that tells the colors apart."""
    from mobileone_ext.engine import train as training

    config = config_of(photos, tmp_path_factory.mktemp('trained'))
    training.train(config)
    return config.work_dir


def config_of(photos, work_dir):
    chosen = dict(option.split('=', 1) for option in options(photos)[1:])
    config = cli.load_config(str(ROOT / TINY), {**chosen, 'model.head.num_classes': 3})
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.num_workers, loader.persistent_workers = 0, False
    config.train_dataloader.dataset.pop('indices')
    config.train_dataloader.batch_size = 8
    config.custom_hooks, config.train_cfg.max_epochs, config.optim_wrapper.optimizer.lr = [], EPOCHS, 0.01
    # Down to nothing: the averages of the batch norms follow the weights, whatever the processor rounds.
    config.param_scheduler = [dict(type='CosineAnnealingLR', T_max=EPOCHS, eta_min=0)]
    config.work_dir, config.randomness.seed = str(work_dir), 0
    config.experiment_name = str(work_dir)
    return config


@pytest.fixture(scope='module')
def checkpoint(trained):
    return f'{trained}/epoch_{EPOCHS}.pth'


def measured(run_tool, tmp_path, checkpoint, root, *more):
    out = tmp_path / 'metrics.json'
    code, text = run_tool('test', TINY, checkpoint, '--out', out, '--work-dir', tmp_path, *options(root, *more))
    assert code == 0, text
    return json.loads(out.read_text())['accuracy/top1'], text


def test_the_checkpoint_knows_its_classes(checkpoint, run_tool, tmp_path, photos):
    assert load_weights(checkpoint).classes == tuple(COLORS)
    for name, layout in (('own.pth', 'mmpretrain'), ('apple.safetensors', 'apple'), ('timm.safetensors', 'timm')):
        convert(checkpoint, tmp_path / name, layout)
        assert load_weights(tmp_path / name).classes == tuple(COLORS)
    fused = tmp_path / 'fused.pth'
    code, text = run_tool('reparam', TINY, checkpoint, fused, *options(photos))
    assert code == 0, text
    assert load_weights(fused).classes == tuple(COLORS)
    assert measured(run_tool, tmp_path, fused, photos)[0] > 90


@pytest.mark.parametrize('known', ['checkpoint', 'training set'])
def test_folders_of_some_classes_get_their_labels(checkpoint, run_tool, tmp_path, photos, known):
    """Two of three: mmpretrain would number them 0 and 1."""
    shutil.copytree(photos / 'train', tmp_path / 'train')
    write_photos(tmp_path / 'val', {name: COLORS[name] for name in ('bee', 'cow')}, seed=2)
    if known == 'checkpoint':
        shutil.rmtree(tmp_path / 'train')
    else:
        state = torch.load(checkpoint, weights_only=True)['state_dict']
        checkpoint = tmp_path / 'nameless.pth'
        torch.save(state, checkpoint)
    top1, text = measured(run_tool, tmp_path, checkpoint, tmp_path)
    assert top1 > 90
    assert "no images of 'ant'" in text


@pytest.mark.parametrize('folders', [dict(ant='ant', bee='bee', dog='cow'), dict(x='ant', y='bee', z='cow')])
def test_other_folders_are_named(checkpoint, run_tool, tmp_path, photos, folders):
    shutil.copytree(photos / 'train', tmp_path / 'train')
    write_photos(tmp_path / 'val', {name: COLORS[color] for name, color in folders.items()})
    odd = [name for name in folders if name not in COLORS]
    for tool, arguments in (('test', (checkpoint,)), ('reparam', (checkpoint, tmp_path / 'x.pth')), ('train', ())):
        code, text = run_tool(tool, TINY, *arguments, *options(tmp_path))
        line = only_line(text)
        assert code == 1 and str(tmp_path / 'val') in line and repr(odd[0]) in line, text
        assert 'Epoch' not in text


def test_a_checkpoint_with_its_classes_in_another_order(checkpoint, run_tool, tmp_path, photos):
    stored = torch.load(checkpoint, weights_only=True)
    order = [2, 0, 1]
    for key in stored['state_dict']:
        if 'head.fc' in key:
            stored['state_dict'][key] = stored['state_dict'][key][order]
    stored['meta']['dataset_meta']['classes'] = tuple(np.array(list(COLORS))[order].tolist())
    turned = tmp_path / 'turned.pth'
    torch.save(stored, turned)
    top1, text = measured(run_tool, tmp_path, turned, photos)
    assert top1 > 90 and 'in the order of classes of the checkpoint' in text
    listed = tmp_path / 'list.txt'
    listed.write_text(''.join(f'{name}/0.png {label}\n' for label, name in enumerate(COLORS)))
    names = 'test_dataloader.dataset.metainfo.classes=[ant,bee,cow]'
    more = (f'test_dataloader.dataset.ann_file={listed}', names)
    code, text = run_tool('test', TINY, turned, '--work-dir', tmp_path, *options(photos, *more))
    assert code == 1 and "class 0 is 'ant', in the checkpoint it is 'cow'" in only_line(text)


def test_names_for_show_go_to_the_sorted_folders(photos, tmp_path):
    actual = CustomDataset(data_root=str(photos), data_prefix='val', metainfo=dict(classes=['Ameise', 'Biene', 'Kuh']))
    assert [actual.get_data_info(i)['gt_label'] for i in (0, 6, 12)] == [0, 1, 2]
    write_photos(tmp_path / 'val', {name: COLORS[name] for name in ('bee', 'cow')})
    with pytest.raises(ValueError, match="'bee', 'cow' are none of the 3 classes 'Ameise', 'Biene', 'Kuh'"):
        CustomDataset(data_root=str(tmp_path), data_prefix='val', metainfo=dict(classes=['Ameise', 'Biene', 'Kuh']))


def test_named_folders_in_another_order(photos):
    actual = CustomDataset(data_root=str(photos), data_prefix='val', metainfo=dict(classes=['cow', 'ant', 'bee']))
    labels = {
        actual.get_data_info(i)['img_path'].split('/')[-2]: actual.get_data_info(i)['gt_label'] for i in range(18)
    }
    assert labels == dict(cow=0, ant=1, bee=2)


def test_own_names_in_predictions_and_files(checkpoint, run_tool, tmp_path, photos):
    out, drawn = tmp_path / 'out.json', tmp_path / 'drawn'
    code, text = run_tool('predict', TINY, checkpoint, photos / 'val', '--out', out, '--draw', drawn, *TINY_CLASSES)
    assert code == 0, text
    for result in json.loads(out.read_text()):
        assert result['predictions'][0]['label'] == result['image'].split('/')[-2]
    exported = tmp_path / 'net.onnx'
    code, text = run_tool('export', TINY, checkpoint, exported, '--size', 32, *TINY_CLASSES)
    assert code == 0, text
    code, text = run_tool('predict', TINY, exported, photos / 'val' / 'cow', '--out', out, *TINY_CLASSES)
    assert code == 0, text
    assert {result['predictions'][0]['label'] for result in json.loads(out.read_text())} == {'cow'}


def test_whose_names(photos):
    config = cli.load_config(str(ROOT / TINY))
    config.model.head.num_classes = 1000
    assert class_names(config) is None  # a thousand own classes are not ImageNet's
    assert class_names(config, published=True)[0] == 'tench, Tinca tinca'
    own = [f'class {i}' for i in range(1000)]
    assert class_names(config, own, published=True) == own
    config.model.head.num_classes = 3
    config.test_dataloader.dataset.data_root = str(photos)
    assert class_names(config) == list(COLORS)
    assert class_names(config, ['x', 'y', 'z']) == ['x', 'y', 'z']
    config = cli.load_config('configs/mobileone_s0_8xb32.py')
    assert class_names(config)[1] == 'goldfish, Carassius auratus'


@pytest.mark.parametrize(
    'names, reference, word',
    [
        (['a', 'b'], ['b', 'a'], 'another order'),
        (['a', 'c'], ['a', 'b'], "'c' not among"),
        (['a'], ['a', 'b'], "has 'b' as well"),
        (None, ['a'], None),
        (['a', 'b'], ('a', 'b'), None),
        (['cafe\u0301', 'b'], ['caf\u00e9', 'b'], None),
        (['cafe\u0301', 'b'], ['b', 'caf\u00e9'], 'another order'),
        (['a', 'a'], ['a'], 'another order'),
        ([f'n{i:08d}' for i in range(1000)], IMAGENET_CATEGORIES, "'n00000000'.* not among"),
        (IMAGENET_CATEGORIES, [f'n{i:08d}' for i in range(1000)], "'tench, Tinca tinca'.* not among"),
    ],
)
def test_two_lists(names, reference, word):
    if word:
        with pytest.raises(ValueError, match=word):
            check_same(names, reference, 'here', 'there')
    else:
        check_same(names, reference, 'here', 'there')


@pytest.mark.parametrize('text', ['bee\ncafe\u0301', 'bee\r\ncafe\u0301\r\n'])
def test_names_in_a_file_and_in_a_config(tmp_path, text):
    """Every line counts, as in mmengine, and letters are composed."""
    (tmp_path / 'names.txt').write_bytes(text.encode())
    listed = dict(data_root=str(tmp_path), img_suffix='.png')
    stored = dict(metainfo=dict(classes=['bee', 'cafe\u0301']), data_list=[])
    (tmp_path / 'list.json').write_text(json.dumps(stored))
    for option in (dict(classes=str(tmp_path / 'names.txt')), dict(metainfo=dict(classes=['bee', 'cafe\u0301'])),
                   dict(ann_file='list.json')):  # fmt: skip
        assert given_names(dict(listed, type='BaseDataset', **option)) == ('bee', 'caf\u00e9')


def test_names_in_a_checkpoint_are_composed(checkpoint, photos, tmp_path, run_tool):
    """So that a head is kept, in the order of the folders, whichever machine wrote the checkpoint."""
    stored = torch.load(checkpoint, weights_only=True)
    stored['meta']['dataset_meta']['classes'] = ('ant', 'cafe\u0301', 'cow')
    torch.save(stored, tmp_path / 'mac.pth')
    weights = load_weights(tmp_path / 'mac.pth')
    assert weights.classes == ('ant', 'caf\u00e9', 'cow')
    data = SimpleNamespace(metainfo=dict(classes=('cafe\u0301', 'cow', 'ant')))
    order = Runner._classes.fget(SimpleNamespace(train_dataloader=SimpleNamespace(dataset=data)))
    assert sorted(order) == sorted(weights.classes)  # what load_from asks before it keeps the head
    turned = in_order(weights, ['cafe\u0301', 'cow', 'ant'])
    assert turned.state['head.fc.bias'].equal(weights.state['head.fc.bias'][[1, 2, 0]])
    for part in ('train', 'val'):
        shutil.copytree(photos / part, tmp_path / part)
        (tmp_path / part / 'bee').rename(tmp_path / part / ('caf\u00e9' if part == 'train' else 'cafe\u0301'))
    top1, text = measured(run_tool, tmp_path, tmp_path / 'mac.pth', tmp_path)
    assert top1 > 90


def test_the_ids_of_imagenet_are_its_names():
    folder = pytest.importorskip('timm.data').__path__[0]
    ids = Path(folder, '_info', 'imagenet_synsets.txt').read_text().split()
    check_same(ids, IMAGENET_CATEGORIES, 'here', 'there')
    for others in (ids[::-1], [*ids[1:], 'n99999999'], [f'class {i}' for i in range(1000)]):
        with pytest.raises(ValueError, match='not among'):
            check_same(others, IMAGENET_CATEGORIES, 'here', 'there')
    with pytest.raises(ValueError, match='not among'):
        check_same([f'class {i}' for i in range(1000)], ids, 'here', 'there')


@pytest.mark.parametrize('case', ['another order', 'other names'])
def test_fine_tuning_and_resuming_go_by_name(trained, photos, tmp_path, run_tool, case):
    """``load_from`` puts a head into order or begins anew; ``--resume`` refuses."""
    stored = torch.load(f'{trained}/epoch_{EPOCHS}.pth', weights_only=True)
    weight = stored['state_dict']['head.fc.weight']
    names = ('cow', 'ant', 'bee') if case == 'another order' else ('x', 'y', 'z')
    if case == 'another order':
        for key in ('head.fc.weight', 'head.fc.bias'):
            stored['state_dict'][key] = stored['state_dict'][key][[2, 0, 1]]
    stored['meta']['dataset_meta']['classes'] = names
    other = tmp_path / 'other.pth'
    torch.save(stored, other)
    config = config_of(photos, tmp_path / 'run')
    config.load_from = str(other)
    run = Runner.from_cfg(config)
    run._train_loop = run.build_train_loop(run._train_loop)
    run.load_or_resume()
    loaded = run.model.state_dict()['head.fc.weight']
    assert torch.equal(loaded, weight) == (case == 'another order')
    key = 'backbone.stage1.0.branch_conv_list.0.conv.weight'
    assert torch.equal(run.model.state_dict()[key], stored['state_dict'][key])
    (log,) = (tmp_path / 'run').glob('*/*.log')
    assert ('the head is new, with 3 classes; the file has others' in log.read_text()) == (case == 'other names')
    run.optim_wrapper = run.build_optim_wrapper(run.optim_wrapper)
    run.param_schedulers = run.build_param_scheduler(run.param_schedulers)
    run.checkpoint = read_training_checkpoint(other, without_digest=True)
    with pytest.raises(ValueError, match='in another order|not among the classes'):
        run.resume(str(other))


GRAY = """
_base_ = {base!r}
load = dict(type='mobileone_ext.LoadImageFromFile', color_type='grayscale')
model = dict(
    backbone=dict(in_channels=1),
    head=dict(num_classes=3),
    data_preprocessor=dict(num_classes=3, mean=[127.0], std=[64.0], to_rgb=False),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root={root!r},
        indices=None,
        pipeline=[
            load,
            dict(type='mobileone_ext.RandomResizedCrop', scale=(48, 32), backend='pillow'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root={root!r},
        pipeline=[load, dict(type='mobileone_ext.ResizeEdge', scale=64, backend='pillow'),
                  dict(type='CenterCrop', crop_size=(32, 48)), dict(type='PackInputs')],
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type='Accuracy', topk=(1, 5)), dict(type='ConfusionMatrix'),
                 dict(type='SingleLabelMetric', average=None)]
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
"""


def test_gray_photos_two_sides_and_all_metrics_in_a_whole_run(photos, tmp_path, run_tool):
    """In training as well, where a confusion matrix goes through checkpoints and logs."""
    config, run = tmp_path / 'gray.py', tmp_path / 'run'
    config.write_text(GRAY.format(base=str(ROOT / TINY), root=str(photos)))
    code, text = run_tool('train', config, '--work-dir', run, '--seed', 0)
    assert code == 0, text
    written = config.read_text()
    report = tmp_path / 'report.json'
    code, text = run_tool('reparam', config, run / 'epoch_1.pth', tmp_path / 'fused.pth', '--report', report)
    assert code == 0, text
    actual = json.loads(report.read_text())
    assert actual['input_size'] == [48, 32] and '48 x 32 px' in text
    code, text = run_tool(
        'reparam', config, run / 'epoch_1.pth', tmp_path / 'fused.pth', '--report', report, '--no-eval'
    )
    assert code == 0, text
    assert json.loads(report.read_text())['multiply_adds_after'] == actual['multiply_adds_after']
    code, text = run_tool('test', config, tmp_path / 'fused.pth', '--work-dir', tmp_path, '--out', tmp_path / 'm.json')
    assert code == 0 and np.array(json.loads((tmp_path / 'm.json').read_text())['confusion_matrix/result']).sum() == 18
    assert config.read_text() == written and (tmp_path / 'resolved_gray.py').exists()
    code, text = run_tool('predict', config, tmp_path / 'fused.pth', photos / 'val' / 'bee')
    assert code == 0 and 'bee' in text, text
    code, text = run_tool('train', config, '--work-dir', run, '--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    assert code == 0, text


def test_multiply_adds_of_both_sides():
    config = cli.load_config(str(ROOT / TINY))
    model = build_model(config, 'fused')
    wide, square = count_multiply_adds(model, (64, 32)), count_multiply_adds(model, 32)
    assert count_multiply_adds(model, (32, 32)) == square and wide == 2 * square
