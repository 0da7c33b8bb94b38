"""tools/demo.py on a network of a few thousand parameters: everything the first time, nothing again the second."""

import runpy

import pytest
from conftest import ROOT, TINY, only_line


@pytest.fixture
def demo(monkeypatch, tmp_path, capfd):
    """Runs the demo in an empty folder and returns what it and its tools print."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['demo.py'])
    main = runpy.run_path(str(ROOT / 'tools' / 'demo.py'))['main']
    monkeypatch.setitem(main.__globals__, 'CONFIG', str(ROOT / TINY))

    def run() -> str:
        main()
        return capfd.readouterr().out

    return run


@pytest.mark.slow  # `make demo` does it all, once
def test_writes_trains_and_fuses_once(demo, tmp_path):
    first = demo()
    assert '(written)' in first and '$ mobileone train' in first and '$ mobileone reparam' in first
    table = first[first.index('360 handwritten digits') :]
    assert [line.split()[-2] for line in table.splitlines() if 'predictions changed' in line] == ['0']
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*') if path.is_file()}
    second = demo()
    assert second.count('(there already)') == 3 and '$ mobileone' not in second
    assert second[second.index('360 handwritten digits') :] == table
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*') if path.is_file()} == files


def test_without_scikit_learn_the_extra_is_named(run_tool, tmp_path, monkeypatch, without_scikit_learn):
    monkeypatch.chdir(tmp_path)
    code, printed = run_tool('demo')
    assert code == 1 and 'sklearn' in only_line(printed) and 'EXTRA being' in only_line(printed)
    assert list(tmp_path.iterdir()) == []
