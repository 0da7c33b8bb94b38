"""docs/finetune.md: every command on the page runs, from the folder that it speaks of."""

import re
import shlex
from dataclasses import dataclass

import pytest
from conftest import ROOT
from test_finetune import weights, write_photos  # noqa: F401

from mobileone_ext.engine import finetune

PAGE = (ROOT / 'docs' / 'finetune.md').read_text()
COMMANDS = re.findall(r'^    python tools/(\w+)\.py (.*)$', PAGE, re.MULTILINE)


@dataclass(frozen=True)
class Quick(finetune.Options):
    """The same options, but one epoch."""

    epochs: int = 1


@pytest.mark.slow
def test_every_command_of_the_page_runs(run_tool, weights, tmp_path, monkeypatch):  # noqa: F811
    cache = tmp_path / 'home' / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    (cache / 'mobileone_s0.pth.tar').write_bytes(weights.read_bytes())
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.setattr(finetune, 'Options', Quick)
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / 'photos', blue=14, red=14)
    write_photos(tmp_path / 'new_photos', seed=1, blue=1)
    assert len(COMMANDS) >= 8, COMMANDS
    for tool, arguments in COMMANDS:
        code, printed = run_tool(tool, *shlex.split(arguments))
        assert code == 0, f'{tool} {arguments}\n{printed}'
    for file in ('model.onnx', 'model_int8.onnx', 'metrics.json', 'work_dirs/finetune_photos/report.md'):
        assert (tmp_path / file).is_file(), file


def test_the_page_has_every_option_with_its_default():
    documented = set(re.findall(r'`(--[a-z-]+)', PAGE[PAGE.index('## Options') :]))
    tool = (ROOT / 'tools' / 'finetune.py').read_text()
    assert set(re.findall(r"'(--[a-z-]+)'", tool)) == documented - {'--out', '--cfg-options'}
    defaults = finetune.Options('x')
    for option, default in {
        'epochs': defaults.epochs,
        'image-size': f'{defaults.size} px',
        'seed': defaults.seed,
    }.items():
        assert re.search(rf'^\| `--{option}`.* \| {default}', PAGE, re.MULTILINE)
