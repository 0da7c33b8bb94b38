"""What the studies share: photos in memory, one training loop, predictions, and runs as rows of a CSV file."""

import copy
import csv
import math
import statistics
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.utils import get_git_hash
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from mobileone_ext.deploy.compare import top_accuracies
from mobileone_ext.metadata import IMAGENET_MEAN, IMAGENET_STD

BATCH_SIZE, WARM_UP, WEIGHT_DECAY = 32, 0.1, 1e-4


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
        images = v2.functional.normalize(images.float(), IMAGENET_MEAN, IMAGENET_STD)
        return images.contiguous(memory_format=torch.channels_last)


def new_head(backbone: nn.Module, num_classes: int) -> tuple[Tensor, Tensor]:
    """Weight (classes, C) and bias of a linear classifier on the backbone's last map."""
    layer = nn.Linear(backbone.out_channels, num_classes)
    return layer.weight, layer.bias


def fit(
    backbone: nn.Module,
    head: tuple[Tensor, Tensor],
    train: Images,
    lr: float,
    steps: int,
    image_size: int,
    drop_last: bool = False,
    transform: v2.Transform | None = None,
) -> list[float]:
    """Train ``backbone`` and ``head`` in place; the loss of every step.

    SGD with momentum, :func:`lr_factor`, and what is random from torch's generator.

    Args:
        drop_last: leave out an epoch's last, smaller batch.
        transform: of a training image; None: random resized crops and flips.

    Raises:
        ValueError: if the loss is no longer finite.
    """
    backbone.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD([*backbone.parameters(), *head], lr, momentum=0.9, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps))
    transform = transform or v2.Compose([v2.RandomResizedCrop(image_size, (0.25, 1)), v2.RandomHorizontalFlip()])
    losses = []
    while len(losses) < steps:
        for part in torch.randperm(len(train.images)).split(BATCH_SIZE)[: steps - len(losses)]:
            if drop_last and len(part) < BATCH_SIZE:
                continue
            loss = F.cross_entropy(classify(backbone, head, train.batch(part, transform)), train.labels[part])
            if not loss.isfinite():
                raise ValueError(f'the loss is {loss.item()} at step {len(losses) + 1} with lr {lr:g}; a smaller one?')
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
    return losses


def top1(backbone: nn.Module, head: tuple[Tensor, Tensor], data: Images, image_size: int) -> float:
    """Percent of ``data`` that the fused network gets right."""
    return top_accuracies(logits(backbone, head, data, image_size), data.labels)[0]


@torch.no_grad()
def logits(backbone: nn.Module, head: tuple[Tensor, Tensor], data: Images, image_size: int) -> Tensor:
    """Logits (N, classes) of center crops, in the fused form."""
    fused = copy.deepcopy(backbone).eval()
    fused.switch_to_deploy()
    parts = torch.arange(len(data.images)).split(100)
    crop = v2.CenterCrop(image_size)
    return torch.cat([classify(fused, head, data.batch(part, crop)) for part in parts])


def classify(backbone: nn.Module, head: tuple[Tensor, Tensor], images: Tensor) -> Tensor:
    """Logits (N, classes)."""
    return F.linear(backbone(images)[-1].mean((2, 3)), *head)


def lr_factor(step: int, steps: int) -> float:
    """Linear warm-up over the first ``WARM_UP`` of ``steps``, then a cosine to 0."""
    warm_up = WARM_UP * steps
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The finished runs in the CSV file ``path``."""
    if not path.exists():
        return []
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: dict) -> None:
    """Add a finished run, and the commit that it ran on, to the CSV file ``path``, which begins with its columns."""
    row = dict(row, commit=get_git_hash(digits=7))
    with open(path, 'a', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, row, lineterminator='\n')
        if not file.tell():
            writer.writeheader()
        writer.writerow(row)


def mean_and_std(values: list[float]) -> tuple[str, str]:
    """Mean and standard deviation of the sample, for a table; '-' for a single value."""
    return f'{statistics.mean(values):.2f}', f'{statistics.stdev(values):.2f}' if len(values) > 1 else '-'
