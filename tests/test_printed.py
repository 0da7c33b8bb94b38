"""What is printed on the pages runs, or says why it does not; commands are held against their tools' parsers."""

import re

import pytest
from conftest import ROOT
from printed import INERT, PAGES, REASONS, blocks, commands, parse, tool_of

# Whose blocks run where more is said of what they leave.
ELSEWHERE = 'docs/inside.md', 'docs/python.md'  # test_inside.py


@pytest.mark.parametrize('page', PAGES)
def test_each_block_runs_or_says_why_not(page):
    for block in blocks(page):
        if block.mark == 'not run':
            assert block.word in REASONS, block
        else:
            assert block.runs or block.language in INERT, f'{block}: {block.language!r} neither runs nor says why not'


@pytest.mark.parametrize('page', PAGES)
def test_no_code_is_missed(page):
    """Every line that is indented as code is, and every pair of fences."""
    printed = [line for block in blocks(page) for line in block.text.splitlines()]
    prose = re.sub(r'^```.*?^```$', '', (ROOT / page).read_text(encoding='utf-8'), flags=re.M | re.S)
    assert set(re.findall(r'^ {4}(.+)$', prose, re.M)) <= set(printed)
    assert not re.search('^ *```', prose, re.M)


@pytest.mark.parametrize('page', PAGES)
def test_commands_are_what_their_tools_take(page, run_tool):
    """Those that are not run too, and those within sentences, which may leave out what a tool needs."""
    wrong = []
    for block in blocks(page):
        for line in commands(block.text) if block.language == 'shell' else ():
            if tool := tool_of(line):
                wrong += [(str(block), line, said) for said in [parse(run_tool, *tool)] if said]
    for line in re.findall(r'(?<!`)`([^`\n]+)`', (ROOT / page).read_text(encoding='utf-8')):
        if tool := tool_of(line):
            wrong += [
                (page, line, said)
                for said in [parse(run_tool, *tool)]
                if said and not re.search('required|expected', said)
            ]
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    'page', [page for page in PAGES if page not in ELSEWHERE and any(b.runs for b in blocks(page))]
)
def test_the_page_runs(page, story):
    story(page)
