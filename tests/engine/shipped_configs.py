"""A dry run of every config that comes with mmpretrain: ``python tests/engine/shipped_configs.py``.

Prints each that does not pass, with the reason, and how many of how many do.
"""

import gc
import re
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import mmpretrain
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.visualization import Visualizer

from mobileone_ext import cli
from mobileone_ext.config import load_config
from mobileone_ext.engine.dry_run import dry_run

FOLDER = Path(mmpretrain.__file__).parent / '.mim/configs'
CLASSIFIERS = ('ImageClassifier', 'TimmClassifier', 'HuggingFaceClassifier')


def shipped() -> list[Path]:
    """The configs, by name, without bases and parts of others (``_name.py``)."""
    return sorted(
        path
        for path in FOLDER.rglob('*.py')
        if not any(part.startswith('_') for part in path.relative_to(FOLDER).parts)
    )


def kind_of(path: Path) -> str:
    """``'classification'``, or what else the config at ``path`` is for: by what its text and its bases build."""
    try:
        model = load_config(str(path)).model
    except ValueError as error:
        return f'not loaded: {error}'
    return 'classification' if str(model.type).rsplit('.', 1)[-1] in CLASSIFIERS else f'another task ({model.type})'


def try_one(path: Path) -> str:
    """An empty string, or why a dry run of ``path`` fails."""
    config = load_config(str(path))
    config.log_level, config.visualizer = 'ERROR', None
    try:
        dry_run(config, str(path.relative_to(FOLDER)))
    except (ValueError, OSError) as error:
        return str(error)
    finally:
        for manager in (MMLogger, MessageHub, Visualizer):
            manager._instance_dict.clear()
        gc.collect()
    return ''


def main(names: list[str]) -> int:
    if names:
        return try_folders(names)
    passed = total = other = 0
    folders = sorted({path.parent.relative_to(FOLDER).parts[0] for path in shipped()})
    for part in (folders[i : i + 10] for i in range(0, len(folders), 10)):
        # Each in a process of its own, which gives its memory back.
        done = subprocess.run([sys.executable, __file__, *part], stdout=subprocess.PIPE, text=True)
        *lines, summary = done.stdout.splitlines() or ['']
        counts = re.fullmatch(r'(\d+) of (\d+) classification configs pass, (\d+) others', summary)
        if not counts:
            lines.append(f'{part}: the process ended with {done.returncode}')
        print(''.join(line + '\n' for line in lines), end='', flush=True)
        if counts:
            passed, total, other = (a + int(b) for a, b in zip((passed, total, other), counts.groups()))
    print(f'{passed} of {total} classification configs pass, {other} others')
    return 0


def try_folders(names: list[str]) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    warnings.filterwarnings('ignore')
    cli.silence_imports()
    torch.set_num_threads(1)
    for name in dir(torch.nn.init):  # drawing billions of numbers would be most of the time
        if name.endswith('_') and not name.startswith('_'):
            setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)
    paths = [path for path in shipped() if path.parent.relative_to(FOLDER).parts[0] in names]
    passed = total = other = 0
    for path in paths:
        name, kind = path.relative_to(FOLDER), kind_of(path)
        if kind != 'classification':
            other += 1
            print(f'{name}: {kind}' if kind.startswith('not loaded') else f'{name}: left out, {kind}', flush=True)
            continue
        total += 1
        reason = try_one(path)
        passed += not reason
        if reason:
            print(f'{name}: failed: {reason}', flush=True)
    print(f'{passed} of {total} classification configs pass, {other} others')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
