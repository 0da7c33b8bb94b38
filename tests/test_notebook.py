"""The notebook runs as it stands, cell after cell, and shows pictures; it is what Jupyter opens."""

import ast
import json
import tempfile

import pytest
from conftest import ROOT
from PIL import Image

NOTEBOOK = json.loads((ROOT / 'docs/tutorials/digits.ipynb').read_text(encoding='utf-8'))
CODE = [''.join(cell['source']) for cell in NOTEBOOK['cells'] if cell['cell_type'] == 'code']


def run(cell: str, names: dict):
    """Run ``cell`` among ``names`` as a notebook does; what it shows below, the value of its last expression."""
    *statements, last = ast.parse(cell).body
    if not isinstance(last, ast.Expr):
        statements.append(last)
    exec(compile(ast.Module(statements, []), 'digits.ipynb', 'exec'), names)
    return eval(compile(ast.Expression(last.value), 'digits.ipynb', 'eval'), names) if last not in statements else None


def test_it_is_a_notebook_without_outputs():
    """As the schema of version 4.5 has it; outputs would hold the folders of whoever ran it last."""
    assert NOTEBOOK.keys() == {'cells', 'metadata', 'nbformat', 'nbformat_minor'}
    assert (NOTEBOOK['nbformat'], NOTEBOOK['nbformat_minor']) == (4, 5)
    assert len({cell['id'] for cell in NOTEBOOK['cells']}) == len(NOTEBOOK['cells'])
    for cell in NOTEBOOK['cells']:
        own = dict(execution_count=None, outputs=[]) if cell['cell_type'] == 'code' else {}
        assert cell['cell_type'] in ('code', 'markdown')
        assert cell == dict(cell_type=cell['cell_type'], id=cell['id'], metadata={}, source=cell['source'], **own)
        assert all(line.endswith('\n') for line in cell['source'][:-1])


@pytest.mark.slow
def test_it_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    names = {}
    shown = [run(cell, names) for cell in CODE]
    assert sum(isinstance(value, Image.Image) for value in shown) >= 4
    assert names['report']['right_after'] > 50
    assert names['difference'].changed_predictions == 0
    assert names['cost']['changed_predictions'] < 0.25 * names['cost']['num_images']
    assert names['int8_file'].stat().st_size < 0.4 * names['float_file'].stat().st_size
