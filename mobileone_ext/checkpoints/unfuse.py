"""Give fused weights their branches back, for training on from them.

The inverse of MobileOne, arXiv 2206.04040, section 3.2, which has many answers.
Here the first convolution branch carries the fused kernel, and its batch norm
undoes the statistics that it applies:

    gamma = sqrt(var + eps), beta = mean + bias   =>   BN(W * x) = W * x + bias

All other branches start with gamma = beta = 0: they add nothing yet, but gamma
gets a gradient at once, and the kernel behind it as soon as gamma has moved.
Statistics of every branch come from images, so that a training step, which
normalizes by its own batch, starts from nearly the same function too.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..block import MobileOneBlock
from .layouts import BACKBONE, HEAD
from .load import Weights
from .structure import read_structure, shapes_of


def with_branches_of(weights: Weights, fused: nn.Module, branched: nn.Module, batches: Iterable[Tensor]) -> Weights:
    """``weights``, which ``fused`` has, with branches; the other arguments as of :func:`unfuse`."""
    unfuse(fused, branched, batches)
    state = {BACKBONE + key: tensor.cpu() for key, tensor in branched.state_dict().items()}
    state.update({key: tensor for key, tensor in weights.state.items() if key.startswith(HEAD)})
    return replace(weights, state=state, structure=read_structure(shapes_of(state)))


@torch.no_grad()
def unfuse(fused: nn.Module, branched: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the weights of ``branched`` so that in eval mode it computes what ``fused`` does.

    Both are backbones of one variant, each block of ``branched`` with at least one
    convolution branch; its other kernels keep their initial values.

    Args:
        batches: images (N, C, H, W), best of the size to be trained with.

    Raises:
        ValueError: if there is no image, or a block without convolution branches.
    """
    pairs = list(zip(_blocks(fused), _blocks(branched)))
    if not all(len(block.branch_conv_list) for _, block in pairs):
        raise ValueError('num_conv_branches=0: the fused kernels need a convolution branch in every block')
    norms = [module for module in branched.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for source, block in pairs:
        block.branch_conv_list[0].conv.weight.copy_(source.branch_reparam.weight)
        block.se.load_state_dict(source.se.state_dict())
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches

    fused.eval().to(memory_format=torch.channels_last)  # twice as fast on a CPU
    branched.train().to(memory_format=torch.channels_last)
    # The input of each block is the fused network's: the branched one normalizes by the batch here, and would differ.
    hooks = [source.register_forward_pre_hook(_also_through(block)) for source, block in pairs]
    count = 0
    for batch in batches:
        fused(batch.contiguous(memory_format=torch.channels_last))
        count += len(batch)
    for hook in hooks:
        hook.remove()
    if not count:
        raise ValueError('no images to calibrate with')

    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    for source, block in pairs:
        for branch in block.branches():
            # Its last norm alone: behind one inside that is zero nothing would get a gradient.
            *_, last = (module for module in branch.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
            last.weight.zero_()
            last.bias.zero_()
        carrier = block.branch_conv_list[0].norm
        carrier.weight.copy_((carrier.running_var.double() + carrier.eps).sqrt())
        carrier.bias.copy_(carrier.running_mean.double() + source.branch_reparam.bias)
    branched.eval()


def _also_through(block: MobileOneBlock) -> Callable[[nn.Module, tuple[Tensor]], None]:
    def hook(_, inputs):
        for branch in block.branches():  # for the statistics of their norms; their sum is of no use
            branch(*inputs)

    return hook


def _blocks(backbone: nn.Module) -> list[MobileOneBlock]:
    return [module for module in backbone.modules() if isinstance(module, MobileOneBlock)]
