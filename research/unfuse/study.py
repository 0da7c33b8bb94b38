"""Does it help to fine-tune fused weights with branches? The study behind ``python -m research.unfuse``.

Three ways to train on from the same fused weights, all evaluated in the fused form:

    fused       the fused network itself: convolutions with a bias, no batch norm
    norm alone  un-fused to one convolution branch a block: batch norm, but no other branch
    branches    un-fused to all branches of the variant

The middle one tells what batch norm does from what the branches do.
"""

import copy
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from torchvision.transforms import v2

from mobileone_ext.backbone import MobileOne
from mobileone_ext.checkpoints.layouts import BACKBONE, HEAD
from mobileone_ext.checkpoints.load import Weights
from mobileone_ext.checkpoints.unfuse import unfuse
from mobileone_ext.deploy.compare import Difference
from mobileone_ext.text import markdown_table
from research.training import BATCH_SIZE, Images, append_row, fit, logits, mean_and_std, new_head, read_rows, top1

ARMS = {
    'fused': dict(deploy=True),
    'norm alone': dict(num_conv_branches=1, use_scale=False, use_skip=False),
    'branches': dict(),
}
# The best of those tried with another seed, see docs/results/unfuse.md.
CHOSEN_LR = {'fused': 3e-4, 'norm alone': 3e-3, 'branches': 3e-3}


def starting_points(weights: Weights, data: Images, image_size: int, num_images: int = 256) -> dict[str, nn.Module]:
    """The backbone of every arm, from the same fused ``weights``, calibrated with training images."""
    fused = MobileOne(weights.structure.variant, deploy=True)
    fused.load_state_dict({k[len(BACKBONE) :]: v for k, v in weights.state.items() if k.startswith(BACKBONE)})
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))[:num_images]
    crop = v2.CenterCrop(image_size)
    backbones = {'fused': fused}
    for arm, options in ARMS.items():
        if arm != 'fused':
            torch.manual_seed(0)
            backbones[arm] = MobileOne(weights.structure.variant, **options)
            unfuse(fused, backbones[arm], (data.batch(part, crop) for part in order.split(BATCH_SIZE)))
    return backbones


def changed_predictions(backbones: dict[str, nn.Module], weights: Weights, data: Images, image_size: int) -> dict:
    """How many predictions of each arm differ from the fused network's, with the head of ``weights``."""
    head = weights.state[HEAD + 'weight'], weights.state[HEAD + 'bias']
    result = {arm: logits(backbone, head, data, image_size) for arm, backbone in backbones.items()}
    differences = {arm: Difference() for arm in backbones}
    for arm, difference in differences.items():
        difference.add(result['fused'], result[arm], ('fused', arm))
    return {arm: difference.changed_predictions for arm, difference in differences.items()}


def fine_tune(
    start: nn.Module, train: Images, val: Images, lr: float, seed: int, epochs: int, image_size: int
) -> float:
    """Top-1 (percent) on ``val`` after training a copy of ``start`` with a new head."""
    torch.manual_seed(seed)
    backbone = copy.deepcopy(start)
    head = new_head(backbone, train.num_classes)
    fit(backbone, head, train, lr, epochs * (len(train.images) // BATCH_SIZE), image_size, drop_last=True)
    return top1(backbone, head, val, image_size)


def run_all(
    backbones: dict[str, nn.Module],
    train: Images,
    val: Images,
    path: Path,
    lrs: list[float] | None,
    seeds: Iterable[int],
    epochs: int,
    image_size: int,
) -> None:
    """Run what is not yet in the CSV at ``path``, a row each; stop it whenever you like and call it again.

    Without ``lrs`` every arm has its ``CHOSEN_LR``.
    """
    done = {(row['arm'], float(row['lr']), int(row['seed'])) for row in read_rows(path)}
    for seed in seeds:
        for arm, backbone in backbones.items():
            for lr in lrs or [CHOSEN_LR[arm]]:
                if (arm, lr, seed) in done:
                    continue
                start = time.perf_counter()
                accuracy = fine_tune(backbone, train, val, lr, seed, epochs, image_size)
                minutes = (time.perf_counter() - start) / 60
                row = dict(arm=arm, lr=f'{lr:g}', seed=seed, top1=f'{accuracy:.2f}', minutes=f'{minutes:.1f}')
                append_row(path, row)
                print(f'{arm}, lr {lr:g}, seed {seed}: top-1 {accuracy:.2f} % in {minutes:.1f} minutes', flush=True)


def table(rows: list[dict[str, str]]) -> str:
    """Markdown: a line an arm and learning rate, mean and standard deviation over the seeds."""
    groups: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        groups.setdefault((row['arm'], float(row['lr'])), []).append(float(row['top1']))
    lines = []
    for (arm, lr), values in sorted(groups.items(), key=lambda item: (list(ARMS).index(item[0][0]), item[0][1])):
        mean, std = mean_and_std(values)
        each = ', '.join(f'{value:.1f}' for value in values)
        lines.append((arm, f'{lr:g}', len(values), mean, std, each))
    return markdown_table(('arm', 'lr', 'n', 'top-1 mean', 'std', 'each seed'), lines)
