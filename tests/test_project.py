"""What surrounds the code is true: links, commands in the docs, the workflow, versions, sizes."""

import csv
import re
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from printed import PAGES

from mobileone_ext import __version__


def requirements(name='requirements-common.txt'):
    """Pinned versions by distribution."""
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split('#')[0].strip().split('==') for line in lines if '==' in line)


@lru_cache
def anchors(page: Path) -> set:
    """What GitHub lets one jump to in a page."""
    headings = re.findall(r'^#+ (.+)$', page.read_text(), re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r'^( {4}|```).*$', '', (ROOT / page).read_text(), flags=re.M)
    broken = []
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if re.match(r'[a-z]+:', target):
            continue
        file, _, anchor = target.partition('#')
        path = (ROOT / page).parent / file if file else ROOT / page
        if not path.exists() or (anchor and path.suffix == '.md' and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize('page', PAGES)
def test_files_that_pages_name_are_there(page):
    text = (ROOT / page).read_text()
    named = re.findall(r'(?<![\w./-])((?:configs|tools|tests|research|docs|mobileone_ext)/[\w./-]+\.\w+)', text)
    assert not [name for name in named if not (ROOT / name).exists()]


def test_rows_of_results_name_their_commit():
    tables = [*(ROOT / 'docs/results').rglob('*.csv'), *(ROOT / 'research').rglob('*.csv')]
    assert len(tables) > 30
    for table in tables:
        with open(table, newline='', encoding='utf-8') as file:
            assert all(row['commit'] for row in csv.DictReader(file)), table


def make_targets():
    return set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.M))


@pytest.mark.parametrize('page', PAGES)
def test_make_targets_in_pages_exist(page):
    text = (ROOT / page).read_text()
    named = re.findall(r'(?:^ {4}|`)make ([a-z-]+)', text, re.M)
    assert set(named) <= make_targets()


def test_the_workflow_runs_what_ci_runs_on_every_python():
    workflow = yaml.safe_load((ROOT / '.github/workflows/ci.yml').read_text())
    assert set(workflow[True]) == {'push', 'pull_request'}  # to YAML 1.1, "on" is a truth value
    (job,) = workflow['jobs'].values()
    assert job['strategy']['matrix']['python'] == ['3.11', '3.12', '3.13']
    assert job['env']['PYTHON'] == 'python${{ matrix.python }}' and 'PYTHON ?=' in (ROOT / 'Makefile').read_text()
    steps = [step['run'] for step in job['steps'] if 'run' in step]
    assert steps == re.findall(r'^(?:timed|if_time_allows) (make .+)$', (ROOT / '.ci/run').read_text(), re.M)
    for step in steps:
        _, target, *variables = step.split()
        assert target in make_targets()
        assert all((ROOT / variable.split('=')[1]).is_file() for variable in variables)


@pytest.mark.parametrize('form', ['bug', 'idea', 'number'])
def test_issue_forms(form):
    content = yaml.safe_load((ROOT / f'.github/ISSUE_TEMPLATE/{form}.yml').read_text())
    assert {'name', 'description', 'body'} <= set(content)
    for field in content['body']:
        assert field['type'] in ('textarea', 'checkboxes') and field['id'] and field['attributes']['label']


def test_pre_commit_has_the_pinned_linter_and_a_limit_that_holds():
    repos = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos']
    assert repos[0]['rev'] == f'v{requirements()["ruff"]}'
    hooks = {hook['id']: hook for repo in repos for hook in repo['hooks']}
    limit = int(hooks['check-added-large-files']['args'][0].split('=')[1]) * 1024
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip('not a git checkout')
    files = [ROOT / name for name in listed.stdout.split('\0') if name]
    assert not [path for path in files if path.is_file() and path.stat().st_size > limit]


def test_citation_and_changelog():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == __version__ and citation['license'] == 'Apache-2.0'
    assert {'cff-version', 'message', 'title', 'authors'} <= set(citation)
    changelog = (ROOT / 'CHANGELOG.md').read_text()
    assert f'\n## {__version__}\n' in changelog or f'\n## [{__version__}]' in changelog
    kinds = set(re.findall(r'^### (.+)$', changelog, re.M))
    assert kinds <= {'Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security'}
    sections = changelog.split('\n## ')[1:]
    assert all(len(names) == len(set(names)) for names in (re.findall(r'^### (.+)$', s, re.M) for s in sections))
