"""The algebra of a block and its gradient as one operator each: torch.compile calls them and does not look into them.

So a block compiles as fast as one convolution does, and what runs is what runs without torch.compile.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import custom_op

from .batch import add_grads, batch_moments, without_autocast
from .fold import Folded, Moments, Parts, fold
from .patches import count_patches


def one_kernel(
    x: Tensor, weights: Tensor, vectors: Tensor, eps: Sequence[float], stride: int, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The one kernel, its bias and the statistics (2, B + Q, O) of the norms; see :class:`Parts` for the arguments."""
    return _one_kernel(x, weights, vectors, [*eps], stride, groups)[:3]


@custom_op('mobileone_ext::one_kernel', mutates_args=())
def _one_kernel(
    x: Tensor, weights: Tensor, vectors: Tensor, eps: list[float], stride: int, groups: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    with without_autocast(x):
        parts = Parts(weights, vectors, tuple(eps), groups, count_patches(x, stride))
        moments = batch_moments(x, weights, stride, groups)
        kernel, bias, of_norms, _ = fold(parts, moments)
    patch, products, pixel_var, _ = moments
    return kernel, bias, of_norms, patch.contiguous(), products.contiguous(), pixel_var.contiguous()


@_one_kernel.register_fake
def _(x, weights, vectors, eps, stride, groups):
    branches, channels, _, size, _ = weights.shape
    inputs = x.shape[1]
    shapes = (
        weights.shape[1:],
        (channels,),
        (2, len(eps), channels),
        (groups, inputs // groups * size**2),
        (branches, channels, inputs // groups * size**2),
        (inputs,),
    )
    return tuple(weights.new_empty(shape) for shape in shapes)


@custom_op('mobileone_ext::one_kernel_grad', mutates_args=())
def _one_kernel_grad(
    x: Tensor,
    weights: Tensor,
    vectors: Tensor,
    saved: list[Tensor],
    dk: Tensor,
    db: Tensor,
    eps: list[float],
    stride: int,
    groups: int,
    onto_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (or nothing), weights and vectors; ``saved``: statistics, then the moments."""
    parts = Parts(weights, vectors, tuple(eps), groups, count_patches(x, stride))
    of_norms, *moments = saved
    dx = torch.zeros_like(x) if onto_x else None
    folded = Folded(weights[0], db, of_norms)
    grads = add_grads(dx, x, stride, parts, Moments(*moments), folded, dk.contiguous(), db)
    return x.new_empty(0) if dx is None else dx, grads[0].contiguous(), grads[1].contiguous()


@_one_kernel_grad.register_fake
def _(x, weights, vectors, saved, dk, db, eps, stride, groups, onto_x):
    dx = torch.empty_like(x) if onto_x else x.new_empty(0)
    return dx, *(value.new_empty(value.shape) for value in (weights, vectors))


def _setup(ctx, inputs, output):
    x, weights, vectors, ctx.eps, ctx.stride, ctx.groups = inputs
    ctx.save_for_backward(x, weights, vectors, *output[2:])
    ctx.mark_non_differentiable(*output[2:])


def _backward(ctx, dk, db, *_):
    x, weights, vectors, *saved = ctx.saved_tensors
    onto_x = ctx.needs_input_grad[0]
    given = weights, vectors, saved, dk.to(weights), db.to(weights)
    dx, dweights, dvectors = _one_kernel_grad(x, *given, ctx.eps, ctx.stride, ctx.groups, onto_x)
    return dx if onto_x else None, dweights, dvectors, None, None, None


_one_kernel.register_autograd(_backward, setup_context=_setup)
