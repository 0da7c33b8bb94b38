"""A small real data set: scikit-learn's digits as PNG files in class folders.

1,797 scans of handwritten digits, 8 x 8 pixels (UCI Optical Recognition of
Handwritten Digits, test part; ships with scikit-learn, no download).
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import temporary_folder

NUM_TRAIN = 1437  # of 1,797


def write_digits(root: str | Path) -> None:
    """Write ``root/train/D/*.png`` (1,437) and ``root/val/D/*.png`` (360), split by a fixed seed.

    Does nothing where ``root`` is there; else it appears whole or not at all.

    Raises:
        ImportError: without scikit-learn.
    """
    root = Path(root)
    if root.exists():
        return
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.target))
    root.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(root) as part:
        for name, indices in dict(train=order[:NUM_TRAIN], val=order[NUM_TRAIN:]).items():
            for index in indices:
                folder = part / name / str(digits.target[index])
                folder.mkdir(parents=True, exist_ok=True)
                gray = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
                Image.fromarray(gray).save(folder / f'{index:04d}.png')
        os.replace(part, root)
