"""The MobileOne block: parallel branches in training, one convolution deployed.

MobileOne, arXiv 2206.04040, section 3.2 and Fig. 3. Plain PyTorch; module
names follow mmpretrain's, so its published weights load as they are:

    branch_conv_list.{i}.conv/.norm   k x (KxK conv - BN)
    branch_scale.conv/.norm           1x1 conv - BN, where K > 1
    branch_norm                       BN alone ("skip"), where in = out and stride = 1
    branch_reparam                    KxK conv with bias, the fused form
    se, act                           shared by both forms

In training the sum of branches can be computed as one convolution, see moments/.

Shapes: x (N, C_in, H, W) -> (N, C_out, ceil(H / stride), ceil(W / stride)).
"""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .arguments import check_bool, check_callable, check_integer
from .moments import gpu, kernels
from .moments.guard import input_obstacle, norm_obstacle, process_obstacle, sequence_obstacle
from .moments.patches import count_patches
from .moments.statistics import batch_kernel, batch_statistics, is_covered, is_faster, pool_processes
from .reparam import Kernel, fold_affine, identity_kernel, norm_affine, pad_kernel, sum_kernels

TRAIN_IMPLS = ('branches', 'moments', 'auto')


class MobileOneBlock(nn.Module):
    """``act(se(sum of branches))``, or ``act(se(conv))`` once fused.

    Args:
        in_channels, out_channels: channels.
        kernel_size: odd; padding is "same" (``dilation * (kernel_size - 1) // 2``).
        stride, dilation, groups: as in ``nn.Conv2d``.
        num_conv_branches: k, the number of KxK conv-BN branches (0 or more).
        use_scale: have the 1x1 conv-BN branch where ``kernel_size`` > 1.
        use_skip: have the BN branch where input and output agree in shape.
        norm: makes a normalization layer for a channel count; BN or SyncBN.
        act: makes the activation.
        se: makes the squeeze-and-excitation layer for a channel count.
        deploy: build the fused form.
        train_impl: how to compute the training forward, with the same result:
            every branch by itself (``'branches'``), one convolution from moments
            of the input (``'moments'``), or for each input what is faster
            (``'auto'``). A block that moments don't cover takes its branches; its
            repr says why.

    Raises:
        ValueError: for an argument of another type or out of range, an even kernel,
            channels not divisible by groups, an unknown ``train_impl``, or a block left
            without any branch.
    """

    # Lets torch.jit.script leave out what the other form lacks.
    __constants__ = ('deploy',)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        num_conv_branches: int = 1,
        use_scale: bool = True,
        use_skip: bool = True,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        act: Callable[[], nn.Module] = nn.ReLU,
        se: Callable[[int], nn.Module] | None = None,
        deploy: bool = False,
        train_impl: str = 'auto',
    ):
        super().__init__()
        sizes = dict(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride)
        for name, value in dict(sizes, dilation=dilation, groups=groups).items():
            check_integer(name, value, 1)
        check_integer('num_conv_branches', num_conv_branches, 0)
        for name, value in dict(use_scale=use_scale, use_skip=use_skip, deploy=deploy).items():
            check_bool(name, value)
        for name, value in dict(norm=norm, act=act, se=se or nn.Identity).items():
            check_callable(name, value)
        if train_impl not in TRAIN_IMPLS:
            raise ValueError(f'train_impl={train_impl!r}: allowed are {", ".join(TRAIN_IMPLS)}')
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size={kernel_size}: an odd number is needed')
        if in_channels % groups or out_channels % groups:
            raise ValueError(f'groups={groups} does not divide channels {in_channels} -> {out_channels}')
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.dilation, self.groups = kernel_size, stride, dilation, groups
        self.deploy, self.train_impl = deploy, train_impl

        has_scale = use_scale and kernel_size > 1
        has_skip = use_skip and in_channels == out_channels and stride == 1
        if not (num_conv_branches or has_scale or has_skip):
            raise ValueError(
                f'num_conv_branches={num_conv_branches}, use_scale={use_scale}, use_skip={use_skip} leaves a block '
                f'{in_channels} -> {out_channels}, kernel {kernel_size}, stride {stride} without a branch'
            )
        if deploy:
            self.branch_reparam = self._conv(kernel_size, stride, bias=True)
        else:
            self.branch_norm = norm(in_channels) if has_skip else None
            self.branch_scale = None
            if has_scale:
                # Stride 1 on the pixels that forward() picks: a strided 1x1 convolution over 3 channels corrupts
                # memory in its backward pass on CPU in channels_last (torch 2.13, 2.14), and is no faster.
                self.branch_scale = nn.Sequential(
                    OrderedDict(conv=self._conv(1, 1, bias=False), norm=norm(out_channels))
                )
            self.branch_conv_list = nn.ModuleList(
                nn.Sequential(OrderedDict(conv=self._conv(kernel_size, stride, bias=False), norm=norm(out_channels)))
                for _ in range(num_conv_branches)
            )
        self.se = se(out_channels) if se else nn.Identity()
        self.act = act()
        if train_impl == 'moments' and self.moments_obstacle():
            warnings.warn(f"train_impl='moments' takes the branches here: {self.moments_obstacle()}", stacklevel=2)

    def _conv(self, kernel_size: int, stride: int, bias: bool) -> nn.Conv2d:
        return nn.Conv2d(
            self.in_channels,
            self.out_channels,
            kernel_size,
            stride,
            self._padding(kernel_size),
            self.dilation,
            self.groups,
            bias,
        )

    def _padding(self, kernel_size: int | None = None) -> int:
        return self.dilation * ((kernel_size or self.kernel_size) - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        if self.deploy:
            linear = self.branch_reparam(x)
        elif not torch.jit.is_scripting() and self.takes_moments(x):
            linear = self._one_convolution(x)
        else:
            linear = self._sum_branches(x)
        return self.act(self.se(linear))

    def _sum_branches(self, x: Tensor) -> Tensor:
        out = 0
        if self.branch_norm is not None:
            out = self.branch_norm(x)
        if self.branch_scale is not None:
            out = out + self.branch_scale(x[:, :, :: self.stride, :: self.stride])
        for branch in self.branch_conv_list:
            out = out + branch(x)
        return out

    @torch.jit.unused
    def _one_convolution(self, x: Tensor) -> Tensor:
        """What ``_sum_branches`` returns in training mode, and the same change of the running statistics."""
        norms = self._norms()
        weights = [branch.conv.weight for branch in self.branch_conv_list]
        pixel_weights = []
        if self.branch_scale is not None:
            weight = self.branch_scale.conv.weight
            if self.groups == 1:
                weights.append(pad_kernel(weight, self.kernel_size))
            else:
                pixel_weights.append(weight.flatten())
        if self.branch_norm is not None:
            pixel_weights.append(torch.ones_like(self.branch_norm.weight))
        weights = torch.stack(weights)
        x, statistics = batch_statistics(x, weights, self.stride, self.groups)
        if isinstance(norms[0], nn.SyncBatchNorm) and dist.is_initialized():
            statistics = pool_processes(statistics, norms[0].process_group)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = batch_kernel(weights, pixel_weights, statistics, norms)
            # Laid out as the branches' kernels, which stacking has lost: an NCHW image convolved with an NHWC kernel
            # becomes an NHWC map, and so do those of all further blocks.
            weight = torch.empty_like(self.branch_conv_list[0].conv.weight, dtype=weight.dtype).copy_(weight)
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        return F.conv2d(x, weight, bias, self.stride, self.kernel_size // 2, groups=self.groups)

    def _norms(self) -> list[nn.Module]:
        """The normalization layers: of the kernels, the scale and the skip branch."""
        norms = [branch._modules['norm'] for branch in self._sequences()]
        if self.branch_norm is not None:
            norms.append(self.branch_norm)
        return norms

    def _sequences(self) -> list[nn.Module]:
        """The branches with a convolution."""
        return [*self.branch_conv_list, *([] if self.branch_scale is None else [self.branch_scale])]

    def moments_obstacle(self) -> str | None:
        """Why this block can only train by its branches; None if it can do otherwise."""
        if self.deploy:
            return 'it is fused'
        shape = self.in_channels, self.out_channels, self.kernel_size, self.stride, self.dilation, self.groups
        if not is_covered(*shape):
            return 'only dense convolutions and depthwise 3x3 ones at stride 1 or 2 are covered, without dilation'
        return process_obstacle() or self._branches_obstacle()

    def _branches_obstacle(self) -> str | None:
        """Why some branch is not plainly a convolution and batch norm, or none."""
        if type(self.branch_conv_list) is not nn.ModuleList or not len(self.branch_conv_list):
            return 'it has no convolution of full size'
        outer = self.out_channels, self.in_channels // self.groups
        same = dict(dilation=(self.dilation,) * 2, groups=self.groups, padding_mode='zeros')
        geometry = dict(same, stride=(self.stride,) * 2, padding=(self._padding(),) * 2)
        for index, branch in enumerate(self.branch_conv_list):
            obstacle = sequence_obstacle(branch, (*outer, self.kernel_size, self.kernel_size), geometry)
            if obstacle:
                return f'branch_conv_list.{index}: {obstacle}'
        if self.branch_scale is not None:
            obstacle = sequence_obstacle(self.branch_scale, (*outer, 1, 1), dict(same, stride=(1, 1), padding=(0, 0)))
            if obstacle:
                return f'branch_scale: {obstacle}'
        if self.branch_norm is not None:
            obstacle = norm_obstacle(self.branch_norm, self.in_channels)
            if obstacle:
                return f'branch_norm: {obstacle}'
        norms = self._norms()
        for norm in norms:
            if type(norm) is not type(norms[0]) or _group_of(norm) is not _group_of(norms[0]):
                return 'its batch norms are of different classes or process groups'
        return None

    @torch.jit.unused
    def takes_moments(self, x: Tensor) -> bool:
        if self.train_impl == 'branches' or not self.training or input_obstacle(x):
            return False
        # Wrong shapes, types and single values: their error is for the branches to raise.
        if x.dim() != 4 or x.shape[1] != self.in_channels or count_patches(x, self.stride) < 2:
            return False
        if self.moments_obstacle():
            return False
        shape = self.kernel_size, self.stride, self.groups, self.out_channels, len(self.branch_conv_list)
        if self.train_impl == 'auto' and not is_faster(x, *shape, self.branch_norm is not None):
            return False
        norms = self._norms()
        if {norm.training for norm in norms} != {True}:
            return False
        # What mixtures of types torch takes, and what it makes of them, the branches show.
        dtypes = {branch.conv.weight.dtype for branch in self._sequences()}
        if torch.is_autocast_enabled(x.device.type):
            return len(dtypes) == 1
        norm_dtypes = {x.dtype} if x.dtype == torch.float64 else {x.dtype, torch.float32}
        return dtypes == {x.dtype} and {norm.weight.dtype for norm in norms} <= norm_dtypes

    def extra_repr(self) -> str:
        if self.deploy:
            return 'deploy=True'
        obstacle = self.moments_obstacle()
        if obstacle:
            return f'train_impl={self.train_impl}, takes the branches: {obstacle}'
        how = (
            ''
            if self.train_impl == 'branches' or self.kernel_size == 1
            else f', statistics by {self._kernels_status()}'
        )
        return f'train_impl={self.train_impl}{how}'

    def _kernels_status(self) -> str:
        device = self._weight().device
        return gpu.status(device) if device.type == 'cuda' or gpu.INTERPRETED else kernels.status()

    def fused_kernel(self) -> Kernel:
        """The one kernel that computes what the branches do in eval mode."""
        if self.deploy:
            return Kernel(self.branch_reparam.weight, self.branch_reparam.bias)
        return sum_kernels(self._branch_kernels())

    def _branch_kernels(self) -> Iterator[Kernel]:
        if self.branch_norm is not None:
            affine = _running_affine(self.branch_norm)
            identity = identity_kernel(self.in_channels, self.groups, self.kernel_size, like=affine.scale)
            yield fold_affine(identity, affine)
        if self.branch_scale is not None:
            weight, bias = _conv_of(self.branch_scale)
            yield fold_affine(pad_kernel(weight, self.kernel_size), _running_affine(self.branch_scale.norm), bias)
        for branch in self.branch_conv_list:
            weight, bias = _conv_of(branch)
            yield fold_affine(weight, _running_affine(branch.norm), bias)

    def branches(self) -> list[nn.Module]:
        """The modules whose sum a block with branches computes."""
        return [*self._sequences(), *([] if self.branch_norm is None else [self.branch_norm])]

    @torch.no_grad()
    def exact_kernel(self) -> Kernel:
        """``fused_kernel`` in float64; the block stays as it is.

        Raises:
            ValueError: if the branches compute something else than their weights say,
                as a hook, an adapter or a module between convolution and norm may have it.
        """
        obstacle = None if self.deploy else self._branches_obstacle()
        if obstacle is None:
            return copy.deepcopy(self).double().fused_kernel()
        modes = {module: module.training for module in self.modules()}
        size = 8 + self.dilation * (self.kernel_size - 1)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, self.in_channels, size, size, generator=generator, dtype=torch.float64)
        try:
            # Old-style parametrizations compute the weight when called, and what they left behind can't be copied.
            self.eval()._sum_branches(x.to(self._weight()))
            block, x = copy.deepcopy(self).double(), x.to(self._weight().device)
            expected = block._sum_branches(x)
            kernel = block.fused_kernel()
            found = F.conv2d(x, *kernel, self.stride, block._padding(), self.dilation, self.groups)
        except (AttributeError, RuntimeError, TypeError) as error:
            raise ValueError(f'cannot be fused, {obstacle}: {error}') from error
        finally:
            for module, training in modes.items():
                module.training = training
        if found.shape != expected.shape or not (found - expected).abs().max() <= 1e-6 * expected.abs().max():
            raise ValueError(f'cannot be fused, {obstacle}: the branches compute something else than their weights say')
        return kernel

    @torch.no_grad()
    def switch_to_deploy(self, kernel: Kernel | None = None) -> None:
        """Replace the branches by their fused kernel, computed in float64.

        It can be trained if something of a branch could. Does nothing to a block that is fused already.

        Args:
            kernel: if it is known already, :meth:`exact_kernel`.

        Raises:
            ValueError: see :meth:`exact_kernel`.
        """
        if self.deploy:
            return
        kernel = kernel or self.exact_kernel()
        like = self._weight()
        trainable = any(parameter.requires_grad for branch in self.branches() for parameter in branch.parameters())
        with like.device:
            self.branch_reparam = self._conv(self.kernel_size, self.stride, bias=True)
        self.branch_reparam.load_state_dict(Kernel(*(tensor.to(like) for tensor in kernel))._asdict(), assign=True)
        self.branch_reparam.train(self.training).requires_grad_(trainable)
        del self.branch_conv_list, self.branch_scale, self.branch_norm
        self.deploy = True

    def _weight(self) -> Tensor:
        """A tensor of the type and place of the branches' weights."""
        convs = [branch.conv for branch in self._sequences() if isinstance(getattr(branch, 'conv', None), nn.Conv2d)]
        return convs[0].weight if convs else next(chain(self.parameters(), self.buffers()))


def _group_of(norm: nn.Module) -> dist.ProcessGroup | None:
    return norm.__dict__.get('process_group')


def _conv_of(branch: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the convolution of a branch."""
    if not isinstance(getattr(branch, 'conv', None), nn.Conv2d) or not hasattr(branch, 'norm'):
        raise ValueError(f'a branch is {type(branch).__name__} of other modules than conv, norm, and cannot be fused')
    return branch.conv.weight, branch.conv.bias


def _running_affine(norm: nn.Module):
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        raise ValueError(f'{type(norm).__name__} cannot be fused: only batch norm with running statistics is linear')
    return norm_affine(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
