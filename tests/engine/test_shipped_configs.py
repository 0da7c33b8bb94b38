"""Configs that come with mmpretrain pass a dry run; shipped_configs.py tries them all."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_shipped_configs_pass_a_dry_run():
    """All of mmpretrain's configs for MobileOne, and some others."""
    command = [sys.executable, 'tests/engine/shipped_configs.py', 'lenet', 'mobileone', 'vig']
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    counts = re.search(r'(\d+) of (\d+) classification configs pass, 0 others', done.stdout)
    assert counts and counts[1] == counts[2] and int(counts[1]) >= 15, done.stdout + done.stderr


def test_a_shipped_config_passes_a_dry_run(run_tool):
    import mmpretrain

    config = f'{mmpretrain.__path__[0]}/.mim/configs/lenet/lenet5_mnist.py'
    code, text = run_tool('train', config, '--dry-run')
    assert code == 0 and 'all of it builds' in text, text
