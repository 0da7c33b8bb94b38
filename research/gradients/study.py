"""Errors of a block's gradients in float32 against float64: the study behind ``python -m research.gradients``.

A network in float64 says what reaches every block and what gradient comes back to it, past the activation. Each block
then gets these by itself, rounded to float32, and computes the gradients of its input and parameters in four ways. The
error of a way is the root of the mean, over these tensors, of the squared relative difference (norms of the tensors) to
float64, which gets the same rounded values.
"""

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from unittest import mock

import torch
import torch.nn.functional as F
from mmengine.model import initialize
from mmengine.utils import get_git_hash
from torch import Tensor, nn
from torchvision.transforms import v2

from mobileone_ext.backbone import MobileOne
from mobileone_ext.block import MobileOneBlock
from mobileone_ext.moments import kernels
from mobileone_ext.text import markdown_table
from research.training import Images, classify, fit, new_head
from research.unfuse.study import starting_points

CHANNELS_LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
WAYS = {  # how a block trains, the memory format, compiled kernels or not
    'kernels': ('moments', CHANNELS_LAST, True),
    'operators': ('moments', CHANNELS_LAST, False),
    'branches, channels_last': ('branches', CHANNELS_LAST, True),
    'branches, contiguous': ('branches', CONTIGUOUS, True),
}
FROM_SCRATCH_LR, FINE_TUNING_LR = 0.05, 0.003
Head = tuple[Tensor, Tensor]


def states(train: Images, weights, steps: Sequence[int], image_size: int) -> Iterator[tuple[str, MobileOne, Head]]:
    """Networks after some steps from scratch and, where there are ``weights``, of fine-tuning them."""
    torch.manual_seed(0)
    fresh = MobileOne('s0')
    initialize(fresh, fresh.init_cfg)
    starts = {'from scratch': (fresh, FROM_SCRATCH_LR)}
    if weights is not None:
        starts['fine-tuned'] = starting_points(weights, train, image_size)['branches'], FINE_TUNING_LR
    for name, (backbone, lr) in starts.items():
        torch.manual_seed(0)
        head = new_head(backbone, train.num_classes)
        done = 0
        for goal in steps:
            if goal > done:
                fit(backbone, head, train, lr, goal - done, image_size)
            done = goal
            yield f'{name}, {goal} steps', backbone, head


def errors(state: str, backbone: MobileOne, head: Head, train: Images, image_size: int, batch_size: int) -> list[dict]:
    """A row for each block, with the error of each way."""
    generator = torch.Generator().manual_seed(1)
    indices = torch.randperm(len(train.images), generator=generator)[:batch_size]
    images = train.batch(indices, v2.CenterCrop(image_size))
    rows = []
    for name, block, x, grad in blocks_with_gradients(backbone, head, images, train.labels[indices]):
        truth = gradients(block, x.double(), grad.double(), 'branches', CONTIGUOUS)
        row = dict(state=state, block=name, kind=kind(block))
        for way, (train_impl, memory_format, compiled) in WAYS.items():
            with nullcontext() if compiled else mock.patch.object(kernels, 'usable', lambda *args, **kwargs: False):
                result = gradients(block, x, grad, train_impl, memory_format)
            row[way] = f'{relative_error(result, truth):.3g}'
        rows.append(dict(row, commit=get_git_hash(digits=7)))
    return rows


def blocks_with_gradients(
    backbone: MobileOne, head: Head, images: Tensor, labels: Tensor
) -> Iterator[tuple[str, MobileOneBlock, Tensor, Tensor]]:
    """Name, block without activation, float32 input and gradient of the output of each, found in float64."""
    network = copy.deepcopy(backbone).double().train()
    seen: dict[str, list] = {}
    for name, block in network.named_modules():
        if isinstance(block, MobileOneBlock):
            block.train_impl = 'branches'
            block.register_forward_hook(_keep(seen, name))
    logits = classify(network, tuple(value.detach().double() for value in head), images.double())
    F.cross_entropy(logits, labels).backward()
    for name, (x, out) in seen.items():
        block = copy.deepcopy(backbone.get_submodule(name))
        block.act = nn.Identity()
        yield name, block, x.float(), (out.grad * (out > 0)).float()


def _keep(seen: dict, name: str) -> Callable:
    def hook(block, inputs, out):
        out.retain_grad()
        seen[name] = inputs[0].detach(), out

    return hook


def gradients(
    block: MobileOneBlock, x: Tensor, grad: Tensor, train_impl: str, memory_format: torch.memory_format
) -> list[Tensor]:
    """Of the input and the parameters, in float64."""
    block = copy.deepcopy(block).to(x.dtype).to(memory_format=memory_format).train()
    block.train_impl = train_impl
    x = x.clone(memory_format=memory_format).requires_grad_()
    block(x).backward(grad.contiguous(memory_format=memory_format))
    return [tensor.grad.double() for tensor in (x, *block.parameters())]


def relative_error(result: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    parts = [((a - b).norm() / b.norm()).square() for a, b in zip(result, truth) if b.norm() > 0]
    return torch.stack(parts).mean().sqrt().item()


def kind(block: MobileOneBlock) -> str:
    if block.groups > 1:
        return f'depthwise, stride {block.stride}'
    return 'stem' if block.kernel_size > 1 else 'pointwise'


def table(rows: list[dict]) -> str:
    """Markdown: median (largest) over the blocks of a kind, in each state and in all together."""
    lines = []
    for state in (*dict.fromkeys(row['state'] for row in rows), 'all'):
        for name in dict.fromkeys(row['kind'] for row in rows):
            own = [row for row in rows if row['kind'] == name and state in (row['state'], 'all')]
            values = ([float(row[way]) for row in own] for way in WAYS)
            cells = (f'{statistics.median(way):.1e} ({max(way):.1e})' for way in values)
            lines.append((state, name, *cells))
    return markdown_table(('state', 'kind', *WAYS), lines)
