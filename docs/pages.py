"""The sources of the site: ``python docs/pages.py`` copies docs/ to build/pages and adds what is generated.

MkDocs with Material builds the site (`make docs`): the pages are Markdown that GitHub shows as well, and mkdocstrings
reads docstrings without importing anything. Generated are the reference of commands, from the tools' parsers, and that
of Python, for which build/source gets a copy of the package with roles (``:func:`x```) as plain names. A notebook
becomes a page, links to files beside docs/ the file's name.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS, BUILD = ROOT / 'docs', ROOT / 'build'
# Modules of the reference, from the front door to the formats.
MODULES = {
    'Front door': (
        'models',
        'deploy.fuse',
        'deploy.predict',
        'deploy.compare_files',
        'deploy.export',
        'engine.finetune',
    ),
    'Network': ('block', 'branches', 'arch', 'network', 'backbone', 'reparam', 'distillation'),
    'Moments': ('moments.fold', 'moments.statistics', 'moments.guard', 'moments.autotune'),
    'Checkpoints': ('checkpoints.load', 'checkpoints.convert', 'checkpoints.unfuse', 'checkpoints.names'),
    'Recipe': (
        *('recipe.curriculum', 'recipe.schedule', 'recipe.strength', 'recipe.param_groups', 'recipe.branch_norms'),
        *('recipe.channels_last', 'recipe.checkpointing', 'recipe.freeze_norm', 'recipe.sync_buffers'),
    ),
    'Formats': (
        'deploy.formats.base',
        'deploy.quantization.quantize',
        'deploy.quantization.prepare',
        'deploy.quantization.inside',
    ),
}
SUBCOMMANDS = {'benchmark': ('infer', 'train', 'pipeline', 'loop', 'imagenet', 'device')}


def text_of(page: Path) -> str:
    """The text of a page, or of a notebook as one."""
    text = page.read_text(encoding='utf-8')
    if page.suffix == '.md':
        return text
    cells = ((cell['cell_type'], ''.join(cell['source'])) for cell in json.loads(text)['cells'])
    parts = [source if kind == 'markdown' else f'```python\n{source}\n```' for kind, source in cells]
    parts.insert(1, f'This page is [a notebook]({page.name}) without its pictures: open it in Jupyter.')
    return '\n\n'.join(parts) + '\n'


def inside(page: Path) -> str:
    """The text of ``page`` in docs/ with links to what is not in docs/ as code: the site doesn't have it."""

    def link(found: re.Match) -> str:
        text, target = found.groups()
        path = Path(os.path.normpath(page.parent / target.partition('#')[0]))
        is_outside = not re.match(r'[a-z]+:|#', target) and not path.is_relative_to(DOCS)
        if page.suffix == '.md' and target.endswith('.ipynb'):
            return f'[{text}]({target.removesuffix(".ipynb")}.md)'
        return f'{text} (`{path.relative_to(ROOT)}`)' if is_outside else found[0]

    return re.sub(r'\[([^\]]*)\]\(([^)\s]+)\)', link, text_of(page))


def commands() -> str:
    """What every tool's parser says."""
    parts = ['# Commands\n\nEach is `python tools/NAME.py`, or `mobileone NAME` where the package is installed.\n']
    for tool in sorted((ROOT / 'tools').glob('*.py')):
        for words in ((tool.stem,), *((tool.stem, name) for name in SUBCOMMANDS.get(tool.stem, ()))):
            command = [sys.executable, '-m', 'mobileone_ext', *words, '--help']
            environment = dict(os.environ, COLUMNS='100')
            text = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT).stdout
            parts.append(f'{"#" * (1 + len(words))} {" ".join(words)}\n\n```text\n{text.rstrip()}\n```\n')
    return '\n'.join(parts)


def python() -> str:
    parts = ['# Python\n']
    for title, modules in MODULES.items():
        parts.append(f'## {title}\n')
        parts += [f'### mobileone_ext.{name}\n\n::: mobileone_ext.{name}\n' for name in modules]
    return '\n'.join(parts)


def main() -> None:
    pages, source = BUILD / 'pages', BUILD / 'source' / 'mobileone_ext'
    for folder in (pages, source):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS, pages, ignore=shutil.ignore_patterns('*.py', '__pycache__'))
    for page in (*DOCS.rglob('*.md'), *DOCS.rglob('*.ipynb')):
        (pages / page.relative_to(DOCS).with_suffix('.md')).write_text(inside(page), encoding='utf-8')
    (pages / 'reference').mkdir()
    (pages / 'reference/commands.md').write_text(commands(), encoding='utf-8')
    (pages / 'reference/python.md').write_text(python(), encoding='utf-8')
    shutil.copytree(ROOT / 'mobileone_ext', source, ignore=shutil.ignore_patterns('__pycache__'))
    for module in source.rglob('*.py'):
        text = module.read_text(encoding='utf-8')
        module.write_text(re.sub(r':\w+:`~?([\w.]+)`', r'``\1``', text), encoding='utf-8')


if __name__ == '__main__':
    main()
