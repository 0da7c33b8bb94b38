"""What is printed on the pages: their blocks of code, and a story, which runs those of a page in order on small data.

A block that is indented is for a shell, one in fences for what they name. A comment above it may say

    <!-- not run: REASON -->   one of REASONS; a tool's command is held against the tool's parser all the same
    <!-- file: NAME -->        the block is this file, and is written
    <!-- photos -->            photos lie like this, and are written

What a block names and nothing before it has made is a stand-in (`STAND_INS`).
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from mobileone_ext.deploy.web import runtime

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md'), *(ROOT / 'research').rglob('*.md'))
)
RUN = 'shell', 'python'
INERT = 'text', 'csv', 'bibtex'
REASONS = (
    'takes hours',
    'takes minutes',
    'needs a GPU',
    'needs several GPUs',
    'needs other packages',
    "needs a phone's tools",
    'installs packages',
    'serves until it is stopped',
)
# What would take longer than a test may: in a block's text, and as further options of a tool, of which the last holds.
SHORT = {
    r'epoch_\d+': 'epoch_1',
    r'\bepochs=\d+': 'epochs=1',
    r'(tools/ablate\.py configs/ablations/\S+)': r'\1 --variants plain',
}
_ALONE = [
    f'{part}_dataloader.{key}'
    for part in ('train', 'val', 'test')
    for key in ('num_workers=0', 'persistent_workers=False')
]
MORE = {
    'finetune': ['--epochs', '1', '--image-size', '32', '--weights', 's0.pth'],
    'train': ['--epochs', '1', '--batch-size', '4', '--cfg-options', *_ALONE],
    'test': ['--cfg-options', *_ALONE[4:]],
    'reparam': ['--cfg-options', *_ALONE[4:]],
    'quantize': ['--num-images', '4', '--cfg-options', *_ALONE[4:]],
    'ablate': ['--epochs', '1', '--seeds', '0'],
}
# What a synopsis leaves open.
PLACEHOLDERS = {
    'CONFIG': 'configs/mobileone_tiny_digits.py',
    'CHECKPOINT': 'tiny.pth',
    'NETWORK': 's0.pth',
    'ROOT': 'data/digits',
    'NAME': 'plain',
    'PHOTOS': 'photos',
    'SRC': 'work_dirs/my_run/epoch_1.pth',
    'DST': 'converted.pth',
    'FOLDER': 'converted',
}
TOOL = re.compile(r'(?:\w+=\S+ )*(?:(?:python )?tools/(\w+)\.py|mobileone (\w+)|python -m (research[\w.]*))(?: |$)')
# Scripts that hand their options to tools/train.py.
TRAINS = re.compile(r'.*tools/(?:dist_train\.sh (\S+) \S+|train\.sbatch (\S+)|train\.py (\S+)(?= --launcher))(.*)')


@dataclass(frozen=True)
class Block:
    """A block of code: page, line (from 1), the heading above it, language, text, and the two parts of its mark."""

    page: str
    line: int
    heading: str
    language: str
    text: str
    mark: str = ''
    word: str = ''

    def __str__(self):
        return f'{self.page}:{self.line}'

    @property
    def runs(self) -> bool:
        return self.mark in ('file', 'photos') or (self.mark != 'not run' and self.language in RUN)


FENCED = r'^```(?P<language>\w*)\n(?P<fenced>(?s:.*?))^```$'
INDENTED = r'(?:(?<=\n\n)|(?<=-->\n))(?P<indented>(?:^ {4}.*\n(?:\n+(?= {4}))?)+)'
MARK = r'^<!-- (?P<mark>not run|file|photos)(?:: (?P<word>.+?))? -->\n'
LOST = MARK.replace('?P<', '?P<lost_')
PART = re.compile(rf'^#+ (?P<heading>.+)$|(?:{MARK}\n*)?(?:{FENCED}|{INDENTED})|{LOST}', re.M)


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in order.

    Raises:
        AssertionError: for a mark that is above no block.
    """
    text, found, heading = (ROOT / page).read_text(encoding='utf-8') + '\n', [], ''
    for part in PART.finditer(text):
        assert not part['lost_mark'], f'{page}: {part[0]!r} stands above no block'
        if part['heading']:
            heading = part['heading']
            continue
        code = part['fenced'] if part['indented'] is None else re.sub('^ {4}', '', part['indented'], flags=re.M)
        language = 'shell' if part['indented'] or part['language'] == 'bash' else part['language']
        line = text.count('\n', 0, part.end()) - code.count('\n') + 1
        found.append(Block(page, line, heading, language, code, part['mark'] or '', part['word'] or ''))
    return found


def commands(text: str) -> Iterator[str]:
    """The lines of a shell, each whole and without its comment."""
    for line in text.replace('\\\n', ' ').splitlines():
        yield re.sub(r'\s+# .*', '', line).strip()


def tool_of(command: str) -> 'tuple[str, list[str]] | None':
    """The tool that a line of a shell calls, as ``run_tool`` names it, and its arguments, those in brackets too."""
    command = re.sub(r'(?<!\S)\[(--.*?)\]', r'\1', command)
    if trains := TRAINS.match(command):
        return 'train', shlex.split(f'{trains[1] or trains[2] or trains[3]} {trains[4]}')
    if not (called := TOOL.match(command)):
        return None
    arguments = [word for word in shlex.split(command[called.end() :]) if word != '...']
    return called[1] or called[2] or called[3], arguments


def parse(run_tool, name: str, arguments: list[str]) -> str:
    """What the tool's parser has against ``arguments``; nothing of the tool runs."""

    def alone(read: Callable):
        def parsed(parser, *arguments):
            read(parser, *arguments)
            raise SystemExit(0)

        return parsed

    readers = {each: alone(getattr(argparse.ArgumentParser, each)) for each in ('parse_args', 'parse_intermixed_args')}
    with patch.multiple(argparse.ArgumentParser, **readers):
        code, printed = run_tool(name, *arguments)
    return printed if code else ''


def write_photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(list(str(path).encode()))
    pixels = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8)).resize((80, 60), Image.Resampling.BILINEAR)
    pixels.save(path, 'PNG')


def write_photos(*folders: str, names: tuple = ()) -> None:
    for folder in folders:
        for name in names or [f'IMG_{number:04d}.jpg' for number in range(1, 9)]:
            write_photo(Path(folder, name))


def write_like(line: str) -> None:
    """Eight photos and that of ``line``, a path with perhaps ``CLASS`` and ``*`` in it."""
    for name in ('cat', 'dog') if 'CLASS' in line else ('',):
        path = Path(line.replace('CLASS', name))
        write_photos(str(path.parent))
        if path.stem != '*':
            write_photo(path)


def write_imagenet(root: str) -> None:
    """Four photos a split with their labels in meta/, of a thousand."""
    for split in ('train', 'val'):
        write_photos(f'{root}/{split}', names=('0.jpg', '1.jpg', '2.jpg', '3.jpg'))
        Path(root, 'meta').mkdir(exist_ok=True)
        Path(root, 'meta', f'{split}.txt').write_text(''.join(f'{number}.jpg {number}\n' for number in range(4)))


def write_digits(root: str) -> None:
    """A few of the digits."""
    folders = [f'{root}/{split}/{digit}' for split in ('train', 'val') for digit in range(10)]
    write_photos(*folders, names=('0.png', '1.png'))


def save(path: str, state: dict, **meta: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=state, meta=meta), path)


def save_s0(path: str, form: str = 'branched', says: bool = False) -> None:
    """A random S0, which ``says`` what it takes as those that were trained here do."""
    from networks import random_state

    from mobileone_ext import cli

    config = cli.load_config(str(ROOT / 'configs/mobileone_s0_8xb32.py'))
    save(path, random_state('s0', form), **(dict(cfg=config.pretty_text) if says else {}))


def save_tiny(path: str) -> None:
    from mobileone_ext import cli
    from mobileone_ext.deploy.fuse import build_model

    save(path, build_model(cli.load_config(str(ROOT / 'configs/mobileone_tiny_digits.py')), 'branched').state_dict())


def write_module(name: str) -> None:
    """What ``package.module:function`` names: S0, as ``net.pth`` has its weights."""
    path = Path(name.partition(':')[0].replace('.', '/') + '.py')
    path.parent.mkdir()
    path.write_text("import mobileone_ext as m1\n\n\ndef function():\n    return m1.create_model('mobileone_s0')\n")


def finetune(path: str) -> None:
    """A run of fine-tuning, made once for all pages."""
    import mobileone_ext as m1

    once = Path.cwd().parent / 'finetuned'
    if not once.exists():
        once.mkdir()
        with contextlib.chdir(once):
            write_photos('photos/cat', 'photos/dog')
            save_s0('s0.pth')
            m1.finetune('photos', 'run', epochs=1, size=32, weights='s0.pth')
    shutil.copytree(once / 'run', path)


STAND_INS = {
    'data/imagenet': write_imagenet,
    'data/digits': write_digits,
    'photos': lambda path: write_photos(f'{path}/cat', f'{path}/dog'),
    'some/photos': write_photos,
    'calibration/photos': write_photos,
    'new_photos': write_photos,
    'folder': write_photos,
    'animals/learn': lambda path: write_photos(f'{path}/cat', f'{path}/dog'),
    'animals/exam': lambda path: write_photos(f'{path}/cat', f'{path}/dog'),
    'work_dirs/my_run': lambda path: save_s0(f'{path}/epoch_1.pth', says=True),
    'work_dirs/finetune_photos': finetune,
    'photo.jpg': lambda path: write_photo(Path(path)),
    'a.jpg': lambda path: write_photo(Path(path)),
    'flowers': lambda path: write_photos(f'{path}/rose', f'{path}/tulip'),
    'package.module:function': write_module,
    'net.pth': save_s0,
    's0.pth': lambda path: save_s0(path, says=True),
    'apple_s0.pth': save_s0,
    'work_dirs/mobileone_s0_8xb32/epoch_1.pth': save_s0,
    'tiny.pth': save_tiny,
}
# What configs read without a command's saying so.
READ = {
    'configs/mobileone_s0_8xb32.py': ('data/imagenet',),
    'configs/mobileone_tiny_digits.py': ('data/digits',),
    'tools/finetune.py': ('s0.pth',),
    's0.pth': ('data/imagenet',),
}


class Story:
    """Runs blocks of a page in the working directory, an empty folder when it begins."""

    def __init__(self, run_tool: Callable):
        self.run_tool = run_tool
        for name in ('configs', 'tools', 'research'):
            Path(name).symlink_to(ROOT / name)

    def run(self, block: Block) -> dict:
        """Run a block; what Python leaves in its names."""
        text = block.text
        for pattern, other in {**SHORT, **{rf'\b{name}\b': value for name, value in PLACEHOLDERS.items()}}.items():
            text = re.sub(pattern, other, text)
        if block.mark == 'photos':
            for line in text.splitlines():
                write_like(line)
            return {}
        if block.mark == 'file':
            Path(block.word).write_text(text)
            return {}
        self.give(text)
        if block.language == 'python':
            names = dict(__name__='__main__')
            exec(compile('\n' * (block.line - 1) + text, str(ROOT / block.page), 'exec'), names)
            return names
        lines = list(commands(text))
        if all(map(TOOL.match, lines)):
            for line in lines:
                self.call(block, line)
        else:
            self.bash(block, text)
        return {}

    def give(self, text: str) -> None:
        """Make what ``text`` names and is not there."""
        named = text + ' '.join(name for key, names in READ.items() if key in text for name in names)
        for name, write in STAND_INS.items():
            if re.search(rf'(?<![\w./]){re.escape(name)}(?![\w.])', named) and not Path(name).exists():
                write(name)

    def call(self, block: Block, line: str) -> None:
        name, arguments = tool_of(line)
        if '--format web' in line:
            try:
                runtime.load()
            except OSError as error:
                pytest.skip(str(error))
        code, printed = self.run_tool(name, *arguments, *MORE.get(name, ()))
        assert code == 0, f'{block}: {line}\n{printed}'

    def bash(self, block: Block, text: str) -> None:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        environment = dict(os.environ, PATH=path, PYTHONPATH=str(ROOT), MASTER_PORT=str(port))
        done = subprocess.run(['bash', '-euc', text], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f'{block}\n{text}\n{done.stdout}{done.stderr}'
