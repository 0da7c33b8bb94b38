"""The MobileOne block: parallel branches in training, one convolution deployed.

MobileOne, arXiv 2206.04040, section 3.2 and Fig. 3. Plain PyTorch; module
names follow mmpretrain's, so its published weights load as they are:

    branch_norm                       BN alone ("skip"), where in = out and stride = 1
    branch_scale.conv/.norm           1x1 conv - BN, where K > 1
    branch_conv_list.{i}.conv/.norm   k x (KxK conv - BN)
    branch_list.{i}                   branches of other types, see branches.py
    branch_reparam                    KxK conv with bias, the fused form
    se, act                           shared by both forms

The block sums its branches in this order, and their kernels when it is fused. In training their sum can be computed
as one convolution, see moments/.

Shapes: x (N, C_in, H, W) -> (N, C_out, ceil(H / stride), ceil(W / stride)).
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from .arguments import check_integer
from .branches import BRANCH_TYPES, SHIPPED, BranchType, ConvShape, listed_branches, named_types, prove
from .moments import dispatch, gpu, kernels
from .moments.guard import description, difference
from .reparam import Kernel, sum_kernels

TRAIN_IMPLS = ('branches', 'moments', 'auto')
SLOTS = ('branch_norm', 'branch_scale', 'branch_conv_list', 'branch_list')


class MobileOneBlock(nn.Module):
    """``act(se(sum of branches))``, or ``act(se(conv))`` once fused.

    Args:
        in_channels, out_channels: channels.
        kernel_size: odd; padding is "same" (``dilation * (kernel_size - 1) // 2``).
        stride, dilation, groups: as in ``nn.Conv2d``.
        num_conv_branches: k, the number of KxK conv-BN branches (0 or more; default 1).
        use_scale: have the 1x1 conv-BN branch where ``kernel_size`` > 1 (default yes).
        use_skip: have the BN branch where input and output agree in shape (default yes).
        branches: instead of these three, the branches as dicts of ``type``, ``count`` (default 1) and options of the
            type, see branches.py: ``[dict(type='ConvBN', count=4), dict(type='SkipBN')]``. A type that cannot stand in
            this block is left out.
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
        ValueError: for a number out of range, an even kernel, channels not divisible by groups, an unknown
            ``train_impl`` or branch type, a branch that is not what its type says, or a block left without any branch.
        TypeError: for an argument of another type.
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
        num_conv_branches: int | None = None,
        use_scale: bool | None = None,
        use_skip: bool | None = None,
        branches: Sequence[Mapping] | None = None,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        act: Callable[[], nn.Module] = nn.ReLU,
        se: Callable[[int], nn.Module] | None = None,
        deploy: bool = False,
        train_impl: str = 'auto',
    ):
        super().__init__()
        self.shape = ConvShape(in_channels, out_channels, kernel_size, stride, dilation, groups)
        for name, value in self.shape._asdict().items():
            setattr(self, name, check_integer(name, value, 1))
        if train_impl not in TRAIN_IMPLS:
            raise ValueError(f'train_impl={train_impl!r}: allowed are {", ".join(TRAIN_IMPLS)}')
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size={kernel_size}: an odd number is needed')
        self.deploy, self.train_impl = deploy, train_impl
        self._dispatcher = dispatch.Dispatcher()

        listed = listed_branches(branches, num_conv_branches, use_scale, use_skip)
        types = [*named_types(listed, self.shape)]
        if not types:
            raise ValueError(f'{listed} leaves a block {self.shape} without a branch')
        if deploy:
            self.branch_reparam = self.shape.conv(bias=True)
        else:
            self._build_branches(types, norm)
        self.se = se(out_channels) if se else nn.Identity()
        self.act = act()
        if train_impl == 'moments' and self.moments_reason():
            warnings.warn(f"train_impl='moments' takes the branches here: {self.moments_reason()}", stacklevel=2)

    def _build_branches(self, types: list[tuple[str, BranchType, dict]], norm: Callable[[int], nn.Module]) -> None:
        self._built = {}  # the type of a branch, and its description
        for slot in SLOTS:  # which is the order of parameters and of random numbers
            held = []
            for name, kind, options in types:
                if kind.slot == slot:
                    try:
                        held.append(kind.build(self.shape, norm, **options))
                    except TypeError as error:  # of the options, as a rule
                        raise ValueError(f'branches: {name}: {error}') from error
                    place = f'{slot}.{len(held) - 1}' if slot == 'branch_list' else slot
                    self._built[place] = name, description(held[-1])
                    if name not in SHIPPED and not any(tensor.is_meta for tensor in held[-1].parameters()):
                        prove(name, kind, held[-1], self.shape)
            setattr(self, slot, nn.ModuleList(held) if slot.endswith('_list') else next(iter(held), None))

    def branch_types(self) -> list[str]:
        """The names of its branches, each once; of a fused block none."""
        return [] if self.deploy else [*dict.fromkeys(name for name, _ in self._built.values())]

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
            out = out + self.branch_scale(x)
        for branch in self.branch_conv_list:
            out = out + branch(x)
        for branch in self.branch_list:
            out = out + branch(x)
        return out

    @torch.jit.unused
    def _one_convolution(self, x: Tensor) -> Tensor:
        """What ``_sum_branches`` returns in training mode, and the same change of the running statistics."""
        return dispatch.one_convolution(self, x)

    @torch.jit.unused
    def takes_moments(self, x: Tensor) -> bool:
        return self._dispatcher.takes_moments(self, x)

    def moments_reason(self) -> str | None:
        """Why this block can only train by its branches; None if it can do otherwise."""
        return dispatch.moments_reason(self)

    def train(self, mode: bool = True) -> 'MobileOneBlock':
        self._dispatcher.forget()
        return super().train(mode)

    def _apply(self, *args, **kwargs):
        self._dispatcher.forget()
        return super()._apply(*args, **kwargs)

    def typed_branches(self, slots: Sequence[str] = SLOTS) -> Iterator[tuple[str, str, nn.Module]]:
        """Name, type's name and module of every branch, slot by slot."""
        for slot in slots:
            held = getattr(self, slot)
            if held is None:
                continue
            # Of a list its items, not its children: those leave out a branch that stands there twice.
            members = held._modules.items() if slot.endswith('_list') else [('', held)]
            for index, branch in members:
                name = f'{slot}.{index}' if index else slot
                kind, _ = self._built.get(name) or self._built.get(slot) or ('ConvBN', None)
                yield name, kind, branch

    def branches(self) -> list[nn.Module]:
        """The modules whose sum a block with branches computes."""
        return [branch for _, _, branch in self.typed_branches()]

    def change(self) -> str | None:
        """What of the branches, or of how they are summed, is not as it was built; None if nothing is."""
        if type(self)._sum_branches is not MobileOneBlock._sum_branches or '_sum_branches' in self.__dict__:
            return 'it sums its branches in a way of its own'
        for name, _, branch in self.typed_branches():
            built = self._built.get(name) or self._built.get(name.split('.')[0])
            changed = difference(branch, built[1]) if built else 'it was added'
            if changed:
                return f'{name}: {changed}'
        return None

    def extra_repr(self) -> str:
        if self.deploy:
            return 'deploy=True'
        reason = self.moments_reason()
        if reason:
            return f'train_impl={self.train_impl}, takes the branches: {reason}'
        if self.train_impl == 'branches' or self.kernel_size == 1:
            return f'train_impl={self.train_impl}'
        device = self._weight().device
        status = gpu.status(device) if device.type == 'cuda' or gpu.INTERPRETED else kernels.status()
        return f'train_impl={self.train_impl}, statistics by {status}'

    def fused_kernel(self) -> Kernel:
        """The one kernel that computes what the branches do in eval mode."""
        if self.deploy:
            return Kernel(self.branch_reparam.weight, self.branch_reparam.bias)
        return sum_kernels(BRANCH_TYPES[kind].kernel(branch, self.shape) for _, kind, branch in self.typed_branches())

    @torch.no_grad()
    def exact_kernel(self) -> Kernel:
        """``fused_kernel`` in float64; the block stays as it is.

        Raises:
            ValueError: if the block computes something else than the sum of its branches' kernels, as a hook, an
                adapter, a module between convolution and norm or a subclass may have it.
        """
        reason = None if self.deploy else self._unknown()
        if reason is None:
            return copy.deepcopy(self).double().fused_kernel()
        modes = {module: module.training for module in self.modules()}
        size = 8 + self.dilation * (self.kernel_size - 1)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, self.in_channels, size, size, generator=generator, dtype=torch.float64)
        try:
            # Old-style parametrizations compute the weight when called, and what they left behind can't be copied.
            self.eval()(x.to(self._weight()))
            block, x = copy.deepcopy(self).double(), x.to(self._weight().device)
            expected = block._sum_branches(x), block(x.clone())
            kernel = block.fused_kernel()
            block._replace_branches(kernel)
            results = self.shape.apply(x, kernel), block(x.clone())
        except (AttributeError, RuntimeError, TypeError) as error:
            raise ValueError(f'cannot be fused, {reason}: {error}') from error
        finally:
            for module, training in modes.items():
                module.training = training
        for fused, branched in zip(results, expected):
            if fused.shape != branched.shape or not (fused - branched).abs().max() <= 1e-6 * branched.abs().max():
                raise ValueError(f'cannot be fused, {reason}: it computes something else than its kernels say')
        return kernel

    def _unknown(self) -> str | None:
        """Why what this block computes has to be tried out; None where it is known."""
        own = {name for name, _ in self._built.values()} - SHIPPED
        if type(self) is not MobileOneBlock:
            return f'it is a {type(self).__name__}'
        if 'forward' in self.__dict__:
            return 'forward is replaced'
        return f'it has branches of other types ({", ".join(sorted(own))})' if own else self.change()

    @torch.no_grad()
    def switch_to_deploy(self, kernel: Kernel | None = None) -> None:
        """Replace the branches by their fused kernel, computed in float64.

        It can be trained if something of a branch could. Does nothing to a block that is fused already.

        Args:
            kernel: if it is known already, :meth:`exact_kernel`.

        Raises:
            ValueError: see :meth:`exact_kernel`.
        """
        if not self.deploy:
            self._replace_branches(kernel or self.exact_kernel())

    def _replace_branches(self, kernel: Kernel) -> None:
        like = self._weight()
        trainable = any(parameter.requires_grad for branch in self.branches() for parameter in branch.parameters())
        with like.device:
            self.branch_reparam = self.shape.conv(bias=True)
        self.branch_reparam.load_state_dict(Kernel(*(tensor.to(like) for tensor in kernel))._asdict(), assign=True)
        self.branch_reparam.train(self.training).requires_grad_(trainable)
        for slot in SLOTS:
            delattr(self, slot)
        self.deploy = True

    def _weight(self) -> Tensor:
        """A tensor of the type and place of the branches' weights."""
        weights = (parameter for branch in self.branches() for parameter in branch.parameters() if parameter.dim() > 1)
        return next(chain(weights, self.parameters(), self.buffers()))
