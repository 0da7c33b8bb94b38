"""Does it help to fine-tune fused weights with branches? The study behind ``python -m research.unfuse``.

Three ways to train on from the same fused weights, all evaluated in the fused form:

    fused       the fused network itself: convolutions with a bias, no batch norm
    norm alone  un-fused to one convolution branch a block: batch norm, but no other branch
    branches    un-fused to all branches of the variant

The middle one tells what batch norm does from what the branches do.
"""

import copy
import csv
import math
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from mobileone_ext.backbone import MobileOne
from mobileone_ext.checkpoints.layouts import BACKBONE, HEAD
from mobileone_ext.checkpoints.load import Weights
from mobileone_ext.checkpoints.unfuse import MEAN, STD, unfuse

ARMS = {
    'fused': dict(deploy=True),
    'norm alone': dict(num_conv_branches=1, use_scale=False, use_skip=False),
    'branches': dict(),
}
# The best of those tried with another seed, see docs/results/unfuse.md.
CHOSEN_LR = {'fused': 3e-4, 'norm alone': 3e-3, 'branches': 3e-3}
BATCH_SIZE, WARM_UP, WEIGHT_DECAY = 32, 0.1, 1e-4
COLUMNS = ('arm', 'lr', 'seed', 'top1', 'minutes')


class Images:
    """A class-folder data set in memory: ``images`` uint8 (3, H, W), short edge ``size``; ``labels`` (N,)."""

    def __init__(self, folder: Path, size: int):
        dataset = ImageFolder(folder, v2.Compose([v2.Resize(size), v2.PILToTensor()]))
        self.images, labels = zip(*dataset)
        self.labels = torch.tensor(labels)
        self.num_classes = len(dataset.classes)

    def batch(self, indices: Iterable[int], transform: v2.Transform) -> Tensor:
        """Transformed and normalized, (N, 3, h, w) channels_last."""
        images = torch.stack([transform(self.images[i]) for i in indices])
        images = v2.functional.normalize(v2.functional.to_dtype(images, torch.float32, scale=True), MEAN, STD)
        return images.contiguous(memory_format=torch.channels_last)


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
    found = {arm: predictions(backbone, head, data, image_size) for arm, backbone in backbones.items()}
    return {arm: int((found[arm] != found['fused']).sum()) for arm in backbones}


@torch.no_grad()
def predictions(backbone: nn.Module, head: tuple[Tensor, Tensor], data: Images, image_size: int) -> Tensor:
    """Predicted classes (N,) of center crops, in the fused form."""
    fused = copy.deepcopy(backbone).eval()
    fused.switch_to_deploy()
    parts = torch.arange(len(data.images)).split(100)
    crop = v2.CenterCrop(image_size)
    return torch.cat([classify(fused, head, data.batch(part, crop)).argmax(1) for part in parts])


def classify(backbone: nn.Module, head: tuple[Tensor, Tensor], images: Tensor) -> Tensor:
    """Logits (N, classes)."""
    return F.linear(backbone(images)[-1].mean((2, 3)), *head)


def lr_factor(step: int, steps: int) -> float:
    """Linear warm-up over the first ``WARM_UP`` of ``steps``, then a cosine to 0."""
    warm_up = WARM_UP * steps
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def fine_tune(
    start: nn.Module, train: Images, val: Images, lr: float, seed: int, epochs: int, image_size: int
) -> float:
    """Top-1 (percent) on ``val`` after training a copy of ``start`` with a new head."""
    torch.manual_seed(seed)
    backbone = copy.deepcopy(start).train().to(memory_format=torch.channels_last)
    layer = nn.Linear(start.stage4[-1].out_channels, train.num_classes)
    head = (layer.weight, layer.bias)
    optimizer = torch.optim.SGD([*backbone.parameters(), *head], lr, momentum=0.9, weight_decay=WEIGHT_DECAY)
    transform = v2.Compose([v2.RandomResizedCrop(image_size, (0.25, 1)), v2.RandomHorizontalFlip()])
    steps = epochs * (len(train.images) // BATCH_SIZE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps))
    for _ in range(epochs):
        for part in torch.randperm(len(train.images)).split(BATCH_SIZE):
            if len(part) < BATCH_SIZE:
                continue
            loss = F.cross_entropy(classify(backbone, head, train.batch(part, transform)), train.labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return 100 * float((predictions(backbone, head, val, image_size) == val.labels).double().mean())


def read_rows(path: Path) -> list[dict[str, str]]:
    """The finished runs in ``path``."""
    if not path.exists():
        return []
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


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
    if not path.exists():
        path.write_text(','.join(COLUMNS) + '\n')
    for seed in seeds:
        for arm, backbone in backbones.items():
            for lr in lrs or [CHOSEN_LR[arm]]:
                if (arm, lr, seed) in done:
                    continue
                start = time.perf_counter()
                top1 = fine_tune(backbone, train, val, lr, seed, epochs, image_size)
                row = f'{arm},{lr:g},{seed},{top1:.2f},{(time.perf_counter() - start) / 60:.1f}'
                with open(path, 'a') as file:
                    file.write(row + '\n')
                print(row, flush=True)


def table(rows: list[dict[str, str]]) -> str:
    """Markdown: a line an arm and learning rate, mean and standard deviation over the seeds."""
    groups: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        groups.setdefault((row['arm'], float(row['lr'])), []).append(float(row['top1']))
    lines = ['| arm | lr | n | top-1 mean | std | each seed |', '|---|---|---|---|---|---|']
    for (arm, lr), values in sorted(groups.items(), key=lambda item: (list(ARMS).index(item[0][0]), item[0][1])):
        std = f'{statistics.stdev(values):.2f}' if len(values) > 1 else '-'
        each = ', '.join(f'{value:.1f}' for value in values)
        lines.append(f'| {arm} | {lr:g} | {len(values)} | {statistics.mean(values):.2f} | {std} | {each} |')
    return '\n'.join(lines)
