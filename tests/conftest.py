"""Fixtures: the tools in this process, a tiny run on digits, images and weights kept outside the project."""

import gc
import os
import runpy
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from unittest.mock import patch

# Before torch is imported, here and in child processes: maps of tests are small, and threads that wait for each other
# take many times as long wherever anything else runs on the machine.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch
from mmengine.config import config as mmengine_config
from mmengine.registry import DefaultScope
from mmengine.runner import runner as mmengine_runner
from torch.nn.modules.batchnorm import _BatchNorm
from yapf.yapflib import yapf_api

from mobileone_ext.deploy import cost

ROOT = Path(__file__).resolve().parent.parent
TINY = 'tests/configs/tiny_digits.py'

# What torch says when gradients of several processes end up in other places than they came from; an error in every
# process of the tests (in this one by pyproject.toml).
SCRAMBLED = 'Grad strides do not match bucket view strides'
os.environ['PYTHONWARNINGS'] = ','.join(filter(None, [os.environ.get('PYTHONWARNINGS'), f'error:{SCRAMBLED}']))

format_code = yapf_api.FormatCode


@cache
def formatted(text: str, *style: tuple):
    return format_code(text, style_config=dict(style))


def format_once(text: str, style_config: dict):
    """Every run formats its config some fifteen times, and most configs are alike."""
    return formatted(text, *style_config.items())


yapf_api.FormatCode = mmengine_config.FormatCode = format_once  # where the forks and where mmengine look it up
mmengine_runner.collect_env = cache(mmengine_runner.collect_env)  # asks compilers for their versions
cost.latency.__defaults__ = (0.01,)  # seconds that a time in a report is taken from, which no test reads


# Formats whose runtimes are a phone's: large, and no part of the usual stack.
PHONES = {'litert', 'executorch', 'ncnn', 'mnn'}


@pytest.hookimpl(tryfirst=True)  # before marks select
def pytest_collection_modifyitems(items):
    """A test whose parameter ``form`` is the format of a phone's runtime belongs to ``make test-apps``."""
    for item in items:
        if hasattr(item, 'callspec') and item.callspec.params.get('form') in PHONES:
            item.add_marker('apps')


def pytest_collection_finish():
    """What is imported stays: mmengine collects garbage for every data set, and would look at all of it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def same_start(monkeypatch):
    """Every test begins in the project's root with the same random numbers, whatever ran before it."""
    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def digits(tmp_path_factory) -> Path:
    """The digits data set on disk."""
    from mobileone_ext.data.digits import write_digits

    root = tmp_path_factory.mktemp('data') / 'digits'
    write_digits(root)
    return root


@pytest.fixture
def without_scikit_learn(monkeypatch):
    """As after ``pip install .``, which leaves optional packages out."""
    import mobileone_ext.engine

    monkeypatch.setitem(sys.modules, 'sklearn', None)
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    monkeypatch.delitem(sys.modules, 'mobileone_ext.engine.plot_recipe', raising=False)
    monkeypatch.delattr(mobileone_ext.engine, 'plot_recipe', raising=False)


@pytest.fixture
def shared() -> Callable[..., Path]:
    """``shared('weights', 'x.pth')`` is a path below MOBILEONE_TEST_DATA (``../shared``); skips without it."""

    def path(*parts: str) -> Path:
        found = Path(os.environ.get('MOBILEONE_TEST_DATA', ROOT.parent / 'shared'), *parts)
        if not found.exists():
            pytest.skip(f'{found} is not there; MOBILEONE_TEST_DATA names the folder of test images and weights')
        return found

    return path


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """``run_tool('train', ...)`` runs a tool (a study: ``'research.unfuse'``) in this process.

    Returns its exit code and what it printed.
    """

    def run(name: str, *arguments) -> 'tuple[int, str]':
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, arguments)])
        DefaultScope._instance_dict.clear()  # as in a process of its own
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            if '.' in name:
                runpy.run_module(name, run_name='__main__')
            else:
                runpy.run_path(str(ROOT / 'tools' / f'{name}.py'), run_name='__main__')
        captured = capsys.readouterr()
        return exit_.value.code, captured.out + captured.err

    return run


@pytest.fixture
def story(run_tool, tmp_path, monkeypatch):
    """``story(page, heading)`` runs the blocks of a page, or those below a heading, and returns what each leaves.

    In a folder of its own, with stand-ins (``printed.py``).
    """
    from printed import Story, blocks

    from mobileone_ext.branches import BRANCH_TYPES

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def tell(page: str, heading: str = '') -> list[dict]:
        story = Story(run_tool)
        return [story.run(block) for block in blocks(page) if block.runs and block.heading.startswith(heading)]

    with patch.dict(BRANCH_TYPES):
        yield tell


def data_options(root: Path) -> list[str]:
    """``--cfg-options`` that point a config's three loaders at ``root``, read in this process."""
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    return [
        *(f'{loader}.dataset.data_root={root}' for loader in loaders),
        *(f'{loader}.{option}' for loader in loaders for option in ('num_workers=0', 'persistent_workers=False')),
    ]


@pytest.fixture(scope='session')
def tiny_run(digits, tmp_path_factory) -> Path:
    """Work dir of a finished tiny run with EMA."""
    from mobileone_ext import cli
    from mobileone_ext.engine import train as training

    work_dir = tmp_path_factory.mktemp('tiny_run')
    config = cli.load_config(str(ROOT / TINY), dict(option.split('=') for option in data_options(digits)[:3]))
    config.train_dataloader.num_workers = config.val_dataloader.num_workers = 0
    config.train_dataloader.persistent_workers = config.val_dataloader.persistent_workers = False
    config.work_dir, config.randomness.seed = str(work_dir), 0
    training.train(config)
    return work_dir


def randomize_norms(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random statistics and affine parameters in every batch norm, so that no term of the fusion is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            with torch.no_grad():
                norm.running_mean.uniform_(-1, 1, generator=generator)
                norm.running_var.uniform_(0.5, 2, generator=generator)
                if norm.affine:
                    norm.weight.uniform_(0.5, 1.5, generator=generator)
                    norm.bias.uniform_(-1, 1, generator=generator)
    return module


def only_line(printed):
    """The error that a tool printed, which must be one line."""
    errors = [line for line in printed.strip().splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and 'Traceback' not in printed, printed
    return errors[0]


@pytest.fixture(params=['kernels', 'operators'])
def either(request, monkeypatch):
    """By the compiled kernels, where there are some, and by torch's operators."""
    from mobileone_ext.moments import kernels

    if request.param == 'operators':
        monkeypatch.setattr(kernels, 'usable', lambda *maps, **options: False)
    elif not kernels.usable(torch.ones(1, 1, 1, 1)):
        pytest.skip('no compiler')
