"""Options that no tool accepts, --help that does nothing, and launch scripts that find their Python."""

import os
import subprocess

import pytest
from conftest import ROOT, TINY, only_line

from mobileone_ext import cli

BAD = [
    ('train', (TINY, '--epochs', '0')),
    ('train', (TINY, '--epochs', '2.5')),
    ('train', (TINY, '--lr', '0,01')),
    ('train', (TINY, '--lr', 'nan')),
    ('train', (TINY, '--lr', '-1')),
    ('train', (TINY, '--batch-size', '0')),
    ('train', (TINY, '--seed', '-1')),
    ('train', (TINY, '--accumulate', '0')),
    ('train', (TINY, '--epoch-size', '3')),
    ('train', ()),
    ('predict', (TINY, 'x.pth', 'x.jpg', '--top', '0')),
    ('reparam', (TINY, 'x.pth', 'y.pth', '--max-flips', '-1')),
    ('ablate', ('study.py', '--seeds', '-1')),
    ('quantize', (TINY, 'x.pth', 'y.onnx', '--calib', 'x', '--num-calib', '0')),
    ('export', (TINY, 'x.pth', 'y.onnx', '--format', 'onnx', '--num-images', '0')),
    ('finetune', ('photos', '--epohcs', '3')),
    *((f'research.{path.parent.name}', ('--epohcs', '3')) for path in sorted(ROOT.glob('research/*/__main__.py'))),
    ('research.int8.formats', ('--epohcs', '3')),
    ('research.int8.settings', ('--epohcs', '3')),
]


@pytest.mark.parametrize('tool, arguments', BAD, ids=[' '.join((tool, *rest[-2:])) for tool, rest in BAD])
def test_a_bad_option_is_one_line(run_tool, tool, arguments):
    code, text = run_tool(tool, *arguments)
    remedy = "did you mean '--epochs'?" if 'unrecognized' in text else '--help lists the options'
    assert code == 1 and remedy in only_line(text)
    assert len(text.strip().splitlines()) == 1, text


OLD_NAMES = [
    ('export', ('absent.py', 'x.pth', 'y.onnx', '--size', '96', '--normalise')),
    ('quantize', ('absent.py', 'x.pth', 'y.onnx', '--calib', 'x', '--num-calib', '3', '--size', '96', '--normalise')),
    ('quantize', ('absent.py', 'x.pth', 'y.onnx', '--no-equalise')),
    ('reparam', ('absent.py', 'x.pth', 'y.pth', '--no-eval')),
    ('benchmark', ('infer', '--turns', '0')),
    ('benchmark', ('pipeline', 'absent', '--rounds', '0', '--sizes', '64')),
    ('benchmark', ('train', '--batch', '0', '--size', '64')),
]


@pytest.mark.parametrize('tool, arguments', OLD_NAMES, ids=[' '.join((tool, *rest[2:])) for tool, rest in OLD_NAMES])
def test_names_of_0_1_are_accepted(run_tool, tool, arguments):
    """Those that the changelog lists: what is refused here is something else."""
    code, text = run_tool(tool, *arguments)
    assert code == 1 and '--help lists the options' not in only_line(text) and 'unrecognized' not in text
    changelog = (ROOT / 'CHANGELOG.md').read_text()
    assert all(f'`{word}`' in changelog for word in arguments if word.startswith('--'))


@pytest.mark.parametrize('tool', sorted(path.stem for path in (ROOT / 'tools').glob('*.py')))
def test_help_does_nothing_else(run_tool, tool, monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, 'run', lambda *args, **kwargs: pytest.fail('something was started'))
    code, text = run_tool(tool, '--help')
    assert code == 0 and text.startswith('usage: ')


def test_lr_and_its_scaling_exclude_each_other(run_tool):
    code, text = run_tool('train', TINY, '--lr', '0.1', '--auto-scale-lr')
    assert code == 1 and 'give one of them' in only_line(text)


def test_plain_options_reach_the_run(run_tool, monkeypatch, digits, tmp_path):
    from mobileone_ext.engine import train as training

    configs = []
    monkeypatch.setattr(training, 'train', configs.append)
    options = ['--epochs', 2, '--lr', 0.3, '--batch-size', 7, '--data', digits, '--work-dir', tmp_path]
    code, text = run_tool('train', TINY, *options)
    assert code == 0, text
    (config,) = configs
    assert (config.train_cfg.max_epochs, config.optim_wrapper.optimizer.lr) == (2, 0.3)
    assert config.train_dataloader.batch_size == 7 and config.param_scheduler[0]['end'] == 2
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        assert config[loader].dataset.data_root == str(digits)


@pytest.mark.parametrize(
    'started, command',
    [
        ('/a {b} $x/tools/finetune.py', "python -m mobileone_ext test '{} c' 1"),
        ('mobileone finetune', "mobileone test '{} c' 1"),
    ],
)
def test_another_tool_is_called_from_any_folder(monkeypatch, started, command):
    monkeypatch.setattr('sys.argv', [started, 'x'])
    assert cli.tool_command('test', '{} c', 1) == command


@pytest.mark.parametrize('script, arguments', [('dist_train.sh', (TINY, '1')), ('slurm_train.sh', ('p', 'j', TINY))])
def test_a_launch_script_finds_its_python(script, arguments, tmp_path):
    """In a copy of the checkout: PYTHON, else .venv, else the path's."""
    tools, path = tmp_path / 'checkout/tools', tmp_path / 'bin'
    for folder in (tools, path, tmp_path / 'checkout/.venv/bin'):
        folder.mkdir(parents=True)
    (tools / script).write_text((ROOT / 'tools' / script).read_text())

    def fake(file, says):
        file.write_text(f'#!/bin/bash\n{says}\n')
        file.chmod(0o755)
        return file

    fake(path / 'srun', 'while [[ $1 == --* ]]; do shift; done; exec "$@"')
    fake(path / 'python3', 'echo path')
    mine = fake(tmp_path / 'mine', 'echo mine')

    def run(**variables):
        variables['PATH'] = f'{path}:/usr/bin:/bin'
        command = ['bash', tools / script, *arguments]
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.strip()

    assert run() == 'path'
    fake(tmp_path / 'checkout/.venv/bin/python', 'echo venv')
    assert run() == 'venv'
    assert run(PYTHON=str(mine)) == 'mine'
    assert os.access(ROOT / 'tools' / script, os.X_OK)
