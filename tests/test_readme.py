"""README's Python runs as it stands there, with stand-ins for what it reads."""

import ast
import re
import textwrap

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmpretrain import get_model
from PIL import Image

CONFIG, WEIGHTS = 'configs/mobileone_s0_8xb32.py', 'work_dirs/mobileone_s0_8xb32/epoch_300.pth'
CODE = re.findall(
    r'(?:^(?: {4}.*)?\n)*^ {4}(?:from|import) .*\n(?:^(?: {4}.*)?\n)*', (ROOT / 'README.md').read_text(), re.M
)
BLOCKS = [textwrap.dedent(block).strip() + '\n' for block in CODE]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with the configs, weights of one that are not trained, and a photo."""
    folder = tmp_path_factory.mktemp('readme')
    (folder / 'configs').symlink_to(ROOT / 'configs')
    (folder / WEIGHTS).parent.mkdir(parents=True)
    torch.save(dict(state_dict=get_model(str(ROOT / CONFIG)).state_dict(), meta={}), folder / WEIGHTS)
    Image.fromarray(np.zeros((240, 320, 3), np.uint8)).save(folder / 'photo.jpg')
    return folder


def test_there_is_python():
    assert BLOCKS


@pytest.mark.parametrize('block', BLOCKS, ids=range(len(BLOCKS)))
def test_it_runs_and_uses_what_it_imports(folder, block, monkeypatch):
    tree = ast.parse(block)
    imported = {alias.asname or alias.name for node in tree.body for alias in getattr(node, 'names', ())}
    assert imported <= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    monkeypatch.chdir(folder)
    exec(compile(block, 'README.md', 'exec'), {})
