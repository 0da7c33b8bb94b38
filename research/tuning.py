"""What the studies of fine-tuning are called with, and the table that they end with."""

import argparse
from pathlib import Path
from types import ModuleType

from mobileone_ext.text import markdown_table


def add_arguments(parser: argparse.ArgumentParser, seeds: list[int], size: int, epochs: int) -> None:
    """Add OUT, ``--weights``, ``--seeds``, ``--image-size`` and ``--epochs`` with these defaults."""
    parser.add_argument('out', type=Path)
    parser.add_argument('--weights', required=True, help='fused weights to start from')
    parser.add_argument('--seeds', type=int, nargs='+', default=seeds)
    parser.add_argument('--image-size', '--size', dest='size', type=int, default=size)
    parser.add_argument('--epochs', type=int, default=epochs)


def run_all(study: ModuleType, args: argparse.Namespace, folders: list[Path], *more: object) -> None:
    """Call ``study.run_all`` with ``folders``, OUT, the seeds and ``more``, and print its rows."""
    args.out.mkdir(parents=True, exist_ok=True)
    options = dict(weights=args.weights, size=args.size, epochs=args.epochs)
    rows = study.run_all(*folders, args.out, args.seeds, *more, **options)
    print(markdown_table(study.COLUMNS, ([row[name] for name in study.COLUMNS] for row in rows)))
