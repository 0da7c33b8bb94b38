"""The main job on real data in minutes: write digits to disk, train, fuse, prove.

What is there from an earlier run is used again; delete work_dirs/demo to start anew.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

from mobileone_ext import cli
from mobileone_ext.files import installed
from mobileone_ext.text import make_console

CONFIG = 'configs/mobileone_s0_digits.py'
DATA = Path('data/digits')
WORK_DIR = Path('work_dirs/demo')
FUSED, REPORT = WORK_DIR / 'mobileone_s0_digits_fused.pth', WORK_DIR / 'report.json'


def tool(*arguments) -> None:
    """Run one of the tools as a person would, and show the command."""
    words = list(map(str, arguments))
    print(f'\n$ {shlex.join(["mobileone", *words])}', flush=True)
    code = subprocess.run([sys.executable, '-m', 'mobileone_ext', *words]).returncode
    if code:
        sys.exit(code)


def main():
    cli.Parser(description=__doc__).parse_args()
    from mmengine.config import Config

    from mobileone_ext.data.digits import write_digits

    if DATA.exists():
        print(f'digits: {DATA} (there already)', flush=True)
    else:
        write_digits(DATA)
        print(f'digits: {DATA} (written)', flush=True)

    last = WORK_DIR / f'epoch_{Config.fromfile(installed(CONFIG)).train_cfg.max_epochs}.pth'
    if last.exists():
        print(f'trained: {last} (there already)', flush=True)
    else:
        tool('train', CONFIG, '--work-dir', WORK_DIR, '--seed', 0, '--resume')
    if FUSED.exists() and REPORT.exists():
        print(f'fused: {FUSED} (there already)')
    else:
        tool('reparam', CONFIG, last, FUSED, '--report', REPORT)
    summarize(json.loads(REPORT.read_text(encoding='utf-8')))


def summarize(report: dict) -> None:
    from rich.table import Table

    table = Table(title='MobileOne-S0 on 360 handwritten digits it has not seen', title_justify='left')
    for heading in ('', 'with branches', 'fused'):
        table.add_column(heading, justify='right' if heading else 'left')
    table.add_row('top-1 (%)', f'{report["top1_before"]:.2f}', f'{report["top1_after"]:.2f}')
    table.add_row('predictions changed', '', str(report['changed_predictions']))
    table.add_row('parameters', f'{report["params_before"]:,}', f'{report["params_after"]:,}')
    table.add_row('latency, one image (ms)', f'{report["latency_ms_before"]:.1f}', f'{report["latency_ms_after"]:.1f}')
    table.add_row('file', report['checkpoint'], report['out'])
    make_console(width=110).print(table)
    print(f'TensorBoard: tensorboard --logdir {WORK_DIR}')


if __name__ == '__main__':
    cli.run(main)
