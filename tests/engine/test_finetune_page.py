"""docs/finetune.md has every option of the tool, with its default."""

import re

from conftest import ROOT

from mobileone_ext.engine import finetune

PAGE = (ROOT / 'docs' / 'finetune.md').read_text()
EARLIER = {'--branches'}  # is --unfuse branches, and stays accepted


def test_the_page_has_every_option_with_its_default():
    documented = set(re.findall(r'`(--[a-z-]+)', PAGE[PAGE.index('## Options') :]))
    tool = (ROOT / 'tools' / 'finetune.py').read_text()
    assert set(re.findall(r"'(--[a-z-]+)'", tool)) - EARLIER == documented - {'--out', '--cfg-options'}
    defaults = finetune.Options('x')
    for option, default in {
        'epochs': defaults.epochs,
        'image-size': f'{defaults.size} px',
        'seed': defaults.seed,
    }.items():
        assert re.search(rf'^\| `--{option}`.* \| {default}', PAGE, re.MULTILINE)
