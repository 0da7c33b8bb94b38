"""Whole runs: resuming after a kill, two processes, averaged weights, files that run no code."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, TINY, data_options, only_line
from mmengine.optim import build_optim_wrapper
from ranks import free_port

from mobileone_ext import cli
from mobileone_ext.checkpoints.load import load_weights
from mobileone_ext.deploy.fuse import build_model

TRAIN = [sys.executable, 'tools/train.py', TINY]


def environment():
    return dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')


def start(work_dir, digits, *options):
    command = [*TRAIN, '--work-dir', str(work_dir), *options, '--cfg-options', *data_options(digits)[:3]]
    return subprocess.Popen(
        command, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def assert_equal_values(actual, expected, where=''):
    """Containers and tensors equal bit for bit."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_equal_values(actual[key], value, f'{where}.{key}')
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), where
        for index, value in enumerate(expected):
            assert_equal_values(actual[index], value, f'{where}.{index}')
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected), where
    else:
        assert actual == expected, where


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(digits, tmp_path):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    undisturbed = start(whole, digits, '--seed', '3')
    run = start(killed, digits, '--seed', '3')
    while not (killed / 'epoch_1.pth').exists():
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not (killed / 'epoch_4.pth').exists(), 'the run was over before it was killed'
    newest = max(killed.glob('epoch_*.pth'))
    (killed / 'epoch_9.pth').write_bytes(newest.read_bytes()[:-1000])

    resumed = start(killed, digits, '--resume')  # the seed is the checkpoint's
    log, _ = resumed.communicate()
    assert resumed.returncode == 0, log
    assert undisturbed.wait() == 0
    assert 'passed over' in log and 'epoch_9.pth' in log
    assert f'resumed epoch: {newest.stem[-1]}' in log
    assert 'eta: ' in log and 'paramwise_options' not in log and len(log.splitlines()) < 40, log

    expected, actual = (torch.load(path / 'epoch_4.pth', weights_only=True) for path in (whole, killed))
    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        assert_equal_values(actual[part], expected[part], part)
    assert not torch.equal(actual['state_dict']['head.fc.weight'], actual['ema_state_dict']['module.head.fc.weight'])


RANK = """
import sys, torch
from mobileone_ext import cli
from mobileone_ext.engine import train as training
options = dict(option.split('=') for option in sys.argv[2:])
config = cli.load_config('tests/configs/tiny_digits.py', options)
config.work_dir, config.launcher, config.randomness.seed = sys.argv[1], 'pytorch', 0
config.train_cfg.max_epochs = 2
runner = training.train(config)
ema = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook').ema_model
state = dict(model=runner.model.module.state_dict(), ema=ema.state_dict())
torch.save(state, f'{sys.argv[1]}/rank{torch.distributed.get_rank()}.pt')
"""


def run_two(text, folder, digits):
    """Run the script ``text`` in two processes that know each other."""
    script = folder / 'rank.py'
    script.write_text(text)
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', str(script)]
    command = [sys.executable, *launch, str(folder), *data_options(digits)[:3]]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(digits, tmp_path):
    run_two(RANK, tmp_path, digits)
    first, second = (torch.load(tmp_path / f'rank{rank}.pt', weights_only=True) for rank in (0, 1))
    assert_equal_values(first, second)


RANK_OF_NAN = """
import math, sys
from pathlib import Path
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mobileone_ext import cli
from mobileone_ext.engine import train as training

@HOOKS.register_module()
class NanOfOneRank(Hook):
    priority = 'VERY_HIGH'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 5 and torch.distributed.get_rank() == 1:
            outputs['loss'] = outputs['loss'] * math.nan

options = dict(option.split('=') for option in sys.argv[2:])
config = cli.load_config('tests/configs/tiny_digits.py', options)
config.work_dir, config.launcher, config.randomness.seed = sys.argv[1], 'pytorch', 0
config.custom_hooks.append(dict(type='NanOfOneRank'))
try:
    training.train(config)
except ValueError as error:
    Path(sys.argv[1], f'rank{torch.distributed.get_rank()}.txt').write_text(str(error))
"""


@pytest.mark.slow
def test_all_ranks_stop_when_the_loss_of_one_is_nan(digits, tmp_path):
    run_two(RANK_OF_NAN, tmp_path, digits)
    first, second = ((tmp_path / f'rank{rank}.txt').read_text() for rank in (0, 1))
    assert first.startswith('training has diverged: loss of another rank is NaN at epoch 2, iteration 6'), first
    assert second.startswith('training has diverged: loss is nan at epoch 2, iteration 6'), second
    assert [path.name for path in tmp_path.glob('epoch*.pth')] == ['epoch_1.pth']


@pytest.mark.slow
def test_dist_train_launches_the_tool(digits, tmp_path):
    command = [
        'bash',
        'tools/dist_train.sh',
        TINY,
        '2',
        '--work-dir',
        str(tmp_path),
        '--no-validate',
        '--classes-from-data',
    ]
    options = ['--cfg-options', 'train_cfg.max_epochs=1', *data_options(digits)[:3]]
    bin_folder = os.path.dirname(sys.executable)
    env = dict(environment(), MASTER_PORT=str(free_port()), PATH=f'{bin_folder}:{os.environ["PATH"]}')
    done = subprocess.run([*command, *options], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / 'epoch_1.pth').exists() and done.stdout.count(f'10 classes of {digits}/train: 0, 1, 2') == 1


def test_data_may_lie_elsewhere_for_a_test(digits, tiny_run, tmp_path, run_tool):
    arguments = ('test', tiny_run / 'epoch_4.pth', '--work-dir', tmp_path / 'log', '--data')
    code, text = run_tool(*arguments, tmp_path / 'gone')
    assert code == 1 and f'{tmp_path}/gone: no such data' in only_line(text)
    shutil.copytree(digits / 'val', tmp_path / 'digits/val')
    photos = sorted((tmp_path / 'digits/val').rglob('*.png'))
    for photo in photos[::2]:
        photo.unlink()
    code, text = run_tool(*arguments, tmp_path / 'digits', '--out', tmp_path / 'out.json')
    assert code == 0 and json.loads((tmp_path / 'out.json').read_text())['num_images'] == len(photos) // 2, text


@pytest.mark.slow
def test_the_first_of_two_processes_prints_and_writes(digits, tiny_run, tmp_path, run_tool):
    arguments = [TINY, str(tiny_run / 'epoch_4.pth'), '--work-dir', str(tmp_path)]
    options = ['--cfg-options', *data_options(digits)]
    code, alone = run_tool('test', *arguments, '--out', tmp_path / 'alone.json', *options)
    assert code == 0, alone
    out = tmp_path / 'together.json'
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', 'tools/test.py']
    command = [sys.executable, *launch, *arguments, '--launcher', 'pytorch', '--out', str(out), *options]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert out.read_text() == (tmp_path / 'alone.json').read_text()
    for line in ('mmpretrain layout, from state_dict (EMA)', 'top-1 '):
        assert alone.count(line) == done.stdout.count(line) == 1, done.stdout


def test_checkpoints_are_plain_and_best_is_kept(tiny_run):
    files = sorted(tiny_run.glob('*.pth'))
    assert [path.name for path in files if path.name.startswith('epoch')] == [f'epoch_{i}.pth' for i in (2, 3, 4)]
    assert any(path.name.startswith('best') for path in files)
    for path in files:
        torch.load(path, weights_only=True)


def test_averaged_weights_are_found_and_differ(tiny_run):
    path = str(tiny_run / 'epoch_4.pth')
    averaged, trained = load_weights(path), load_weights(path, ema='off')
    assert '(EMA)' in averaged.source and '(EMA)' not in trained.source
    assert not torch.equal(averaged.state['head.fc.weight'], trained.state['head.fc.weight'])


def test_the_run_leaves_curves_and_its_config(tiny_run):
    assert list(tiny_run.rglob('events.out.tfevents.*'))
    assert (tiny_run / 'tiny_digits.py').exists()


def test_normalization_layers_do_not_decay():
    config = cli.load_config('configs/mobileone_s0_8xb32.py')
    model = build_model(config, 'branched')
    groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    norms = {id(p) for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()}
    decay = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    assert len(groups) == 2 and len(decay) == len(list(model.parameters()))
    assert all(value == (0.0 if key in norms else 1e-4) for key, value in decay.items())
