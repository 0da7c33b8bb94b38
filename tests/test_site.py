"""The sources of the site: what docs/pages.py generates; links and anchors are for MkDocs to check (`make docs`)."""

import importlib.util
import json

import pytest
from conftest import ROOT


@pytest.fixture(scope='module')
def pages():
    spec = importlib.util.spec_from_file_location('docs_pages', ROOT / 'docs/pages.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_modules_of_the_reference_are_there(pages):
    names = [name for modules in pages.MODULES.values() for name in modules]
    assert len(set(names)) == len(names)
    assert not [name for name in names if not (ROOT / 'mobileone_ext' / f'{name.replace(".", "/")}.py').is_file()]


def test_links_to_what_the_site_lacks_become_names(pages, monkeypatch, tmp_path):
    monkeypatch.setattr(pages, 'ROOT', tmp_path)
    monkeypatch.setattr(pages, 'DOCS', tmp_path / 'docs')
    page = tmp_path / 'docs/results/a.md'
    page.parent.mkdir(parents=True)
    page.write_text('[code](../../tools/x.py), [b](../b.md#c), [here](#d), [web](https://example.org)')
    assert pages.inside(page) == 'code (`tools/x.py`), [b](../b.md#c), [here](#d), [web](https://example.org)'


def test_a_notebook_becomes_a_page(pages, monkeypatch, tmp_path):
    monkeypatch.setattr(pages, 'DOCS', tmp_path)
    cells = [
        dict(cell_type='markdown', source=['# Title\n', 'text']),
        dict(cell_type='code', source=['first = 1\n', 'first']),
    ]
    (tmp_path / 'a.ipynb').write_text(json.dumps(dict(cells=cells)))
    title, note, code = pages.inside(tmp_path / 'a.ipynb').split('\n\n')
    assert (title, code) == ('# Title\ntext', '```python\nfirst = 1\nfirst\n```\n') and '](a.ipynb)' in note
