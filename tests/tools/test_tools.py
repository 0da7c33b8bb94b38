"""The tools as a user runs them: the main job, and each mistake answered by one line that loses nothing."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY, data_options, only_line
from hostile import BAD_CHECKPOINTS, write_bad_checkpoint
from PIL import Image

from mobileone_ext import branches as branches_module


def options(root, *more):
    return ['--cfg-options', *data_options(root), *more]


@pytest.fixture(scope='session')
def fused(tiny_run, digits, tmp_path_factory):
    """A fused file and its report."""
    from mobileone_ext import cli
    from mobileone_ext.deploy import reparam as conversion

    out = tmp_path_factory.mktemp('fused') / 'fused.pth'
    config = cli.load_config(TINY, dict(option.split('=') for option in data_options(digits)[:3]))
    config.test_dataloader.num_workers, config.test_dataloader.persistent_workers = 0, False
    report = conversion.convert(config, str(tiny_run / 'epoch_4.pth'), str(out), report_path=str(out) + '.json')
    return out, report


def test_reparam_changes_no_prediction_and_reports(fused):
    out, report = fused
    assert report == json.loads(out.with_name('fused.pth.json').read_text())
    assert report['changed_predictions'] == 0 and report['num_images'] == 360
    assert report['top1_before'] == report['top1_after'] and report['top5_before'] == report['top5_after']
    assert 0 < report['max_rel_logit_diff'] < 1e-3
    assert report['params_after'] < report['params_before'] and report['source'].endswith('(EMA)')
    meta = torch.load(out, weights_only=True)['meta']
    assert meta['source'] == 'epoch_4.pth' and len(meta['source_sha256']) == 64 and 'torch' in meta['versions']


def test_reparam_tool_prints_the_table(run_tool, tiny_run, digits, tmp_path):
    code, printed = run_tool('reparam', TINY, tiny_run / 'epoch_4.pth', tmp_path / 'out.pth', *options(digits))
    assert code == 0 and '0 of 360 predictions changed' in printed and '(EMA)' in printed
    assert (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize('ema', ['auto', 'off'])
def test_test_agrees_with_the_report(run_tool, tiny_run, fused, digits, tmp_path, ema):
    metrics = tmp_path / 'metrics.json'
    checkpoint = fused[0] if ema == 'auto' else tiny_run / 'epoch_4.pth'
    code, printed = run_tool(
        'test', TINY, checkpoint, '--ema', ema, '--out', metrics, '--work-dir', tmp_path, *options(digits)
    )
    assert code == 0 and '360 images' in printed
    found = json.loads(metrics.read_text())
    assert found['num_images'] == 360 and found['accuracy/top5'] >= found['accuracy/top1']
    if ema == 'auto':
        assert found['accuracy/top1'] == pytest.approx(fused[1]['top1_after'])
        assert found['accuracy/top5'] == pytest.approx(fused[1]['top5_after'])


def test_sabotaged_fusion_is_caught_and_nothing_is_written(run_tool, tiny_run, digits, tmp_path, monkeypatch):
    right = branches_module.norm_affine
    monkeypatch.setattr(branches_module, 'norm_affine', lambda mean, *rest: right(torch.zeros_like(mean), *rest))
    code, printed = run_tool('reparam', TINY, tiny_run / 'epoch_4.pth', tmp_path / 'out.pth', *options(digits))
    assert code == 1 and 'stage0: cannot be fused: it computes something else' in only_line(printed)
    assert not list(tmp_path.iterdir())


def test_changed_predictions_are_caught_and_the_old_file_stays(run_tool, tiny_run, digits, tmp_path, monkeypatch):
    from mobileone_ext.deploy import fuse

    def spoil(model):
        spoiled = right(model)
        spoiled.head.fc.weight.data.mul_(-1)
        return spoiled

    right = fuse.fuse
    monkeypatch.setattr(fuse, 'fuse', spoil)
    out = tmp_path / 'out.pth'
    out.write_bytes(b'earlier work')
    code, printed = run_tool('reparam', TINY, tiny_run / 'epoch_4.pth', out, *options(digits))
    assert code == 1 and 'predictions changed' in only_line(printed)
    assert out.read_bytes() == b'earlier work' and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize('tool', ['train', 'test', 'reparam', 'convert_checkpoint'])
@pytest.mark.parametrize('kind', BAD_CHECKPOINTS)
def test_bad_checkpoints_are_refused_and_run_no_code(run_tool, tiny_run, digits, tmp_path, tool, kind):
    checkpoint, message = write_bad_checkpoint(tmp_path, kind, tiny_run / 'epoch_4.pth')
    out = tmp_path / 'out.pth'
    arguments = {
        'train': [TINY, '--work-dir', tmp_path / 'run', '--resume', checkpoint, *options(digits)],
        'test': [TINY, checkpoint, *options(digits)],
        'reparam': [TINY, checkpoint, out, *options(digits)],
        'convert_checkpoint': [checkpoint, out, '--to', 'timm'],
    }[tool]
    code, printed = run_tool(tool, *arguments)
    error = only_line(printed)
    assert code == 1 and message in error and str(checkpoint) in error
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_resuming_from_a_fused_file_is_refused(run_tool, fused, digits, tmp_path):
    code, printed = run_tool('train', TINY, '--work-dir', tmp_path, '--resume', fused[0], *options(digits))
    assert code == 1 and 'not a training checkpoint' in only_line(printed)


def test_a_fused_source_is_not_fused_again(run_tool, fused, digits, tmp_path):
    code, printed = run_tool('reparam', TINY, fused[0], tmp_path / 'out.pth', *options(digits))
    assert code == 1 and 'fused already' in only_line(printed)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (['trian_dataloader.batch_size=4'], "did you mean 'train_dataloader'?"),
        (['model.backbone.arch=s9'], "arch='s9': unknown; known are"),
    ],
)
def test_slips_in_a_config_are_named(run_tool, digits, tmp_path, changes, message):
    code, printed = run_tool('train', TINY, '--work-dir', tmp_path, *options(digits, *changes))
    assert code == 1 and message in only_line(printed)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (['model.backbone.arch.width_factor=[0.25,0.125,0.0625,0.0625]'], 'another network'),
        (['model.head.num_classes=12'], '12 classes; --cfg-options model.head.num_classes=10'),
    ],
)
def test_checkpoints_of_other_networks_are_refused(run_tool, tiny_run, digits, tmp_path, changes, message):
    code, printed = run_tool('test', TINY, tiny_run / 'epoch_4.pth', '--work-dir', tmp_path, *options(digits, *changes))
    assert code == 1 and message in only_line(printed)


def test_another_class_count_is_named(run_tool, shared, digits, tmp_path):
    weights = shared('weights', 'apple_mobileone_s0_fused.pth')
    code, printed = run_tool(
        'test', 'configs/mobileone_s0_digits.py', weights, '--work-dir', tmp_path, *options(digits)
    )
    error = only_line(printed)
    assert code == 1 and '1000 classes' in error and '10 classes' in error


@pytest.mark.parametrize('kind', ['text', 'truncated PNG', 'truncated JPEG'])
def test_a_broken_image_is_named(run_tool, digits, tmp_path, kind):
    root = tmp_path / 'digits'
    shutil.copytree(digits, root)
    image = sorted(root.glob('train/0/*.png'))[0]
    if kind == 'truncated JPEG':
        photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
        image.unlink()
        image = image.with_suffix('.jpg')
        photo.save(image)
    image.write_bytes(b'not an image' if kind == 'text' else image.read_bytes()[: image.stat().st_size // 2])
    code, printed = run_tool('train', TINY, '--work-dir', tmp_path / 'run', *options(root))
    error = only_line(printed)
    assert code == 1 and str(image) in error and 'not a readable image' in error


def test_missing_imagenet_says_what_and_where(run_tool, tmp_path):
    imagenet, data = 'configs/mobileone_s0_8xb32.py', ('--data', tmp_path / 'none')
    code, printed = run_tool('train', imagenet, '--work-dir', tmp_path / 'run', *data)
    missing = only_line(printed).removeprefix('error: ')
    assert code == 1 and not (tmp_path / 'run').exists()
    for part in ('no such data', 'class folders', 'annotation file', '--data ROOT'):
        assert part in missing
    code, printed = run_tool('train', imagenet, '--dry-run', *data)
    assert code == 0 and printed.splitlines()[-1] == f'note: {missing}'


def test_a_folder_without_images_is_named(run_tool, tmp_path):
    for part in ('train', 'val'):
        (tmp_path / f'data/{part}/0').mkdir(parents=True)
    code, printed = run_tool('train', TINY, '--work-dir', tmp_path / 'run', *options(tmp_path / 'data'))
    assert code == 1 and f'{tmp_path}/data/train: no images; expected are' in only_line(printed)


def test_outputs_that_are_folders_are_refused_before_the_work(run_tool, tiny_run, digits, tmp_path):
    code, printed = run_tool('reparam', TINY, tiny_run / 'epoch_4.pth', tmp_path, *options(digits))
    assert code == 1 and 'is a folder' in only_line(printed)
    code, printed = run_tool('test', TINY, tiny_run / 'epoch_4.pth', '--out', tmp_path, *options(digits))
    assert code == 1 and 'is a folder' in only_line(printed)


def test_a_work_dir_with_another_run_is_not_overwritten(run_tool, tiny_run, digits):
    code, printed = run_tool('train', TINY, '--work-dir', tiny_run, *options(digits))
    assert code == 1 and '--resume goes on with it' in only_line(printed)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_amp_without_a_gpu_is_refused(run_tool, digits, tmp_path):
    code, printed = run_tool('train', TINY, '--amp', '--work-dir', tmp_path, *options(digits))
    assert code == 1 and 'AmpOptim' in only_line(printed) and 'gpu' in only_line(printed)


@pytest.mark.slow
def test_apples_weights_have_their_published_accuracy(run_tool, shared, tmp_path):
    root = shared('data', 'ilsvrc_val_1300')
    metrics = tmp_path / 'metrics.json'
    dataset = [f'test_dataloader.dataset.{option}' for option in (f'data_root={root}', 'ann_file=meta/val.txt')]
    code, _ = run_tool(
        'test',
        'configs/mobileone_s0_8xb32.py',
        shared('weights', 'apple_mobileone_s0_fused.pth'),
        '--out',
        metrics,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        *dataset,
    )
    found = json.loads(metrics.read_text())
    assert code == 0 and found['num_images'] == 1300
    assert (round(found['accuracy/top1'], 2), round(found['accuracy/top5'], 2)) == (80.77, 94.92)
