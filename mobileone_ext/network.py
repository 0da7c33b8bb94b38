"""MobileOne in torch alone: a stem and four stages of depthwise + pointwise blocks; every stage halves the plane.

MobileOne: An Improved One Millisecond Mobile Backbone, arXiv 2206.04040, section 3 and Table 7. What a config says of
it in mmcv's words is translated in backbone.py; classifiers and maps for others' networks are in models.py.
"""

import copy
import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .arch import resolve_arch, stage_widths
from .arguments import check_integer, is_integer
from .block import MobileOneBlock
from .branches import listed_branches
from .text import one_line

NUM_STAGES = 4
IN_PLACE = partial(nn.ReLU, inplace=True)


class SqueezeExcite(nn.Module):
    """``x * sigmoid(conv(relu(conv(mean of x))))``, x (N, C, H, W); names and numbers of mmpretrain's ``SELayer``."""

    def __init__(self, channels: int, ratio: int = 16):
        super().__init__()
        inner = channels // ratio
        self.conv1 = nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, inner, 1), activate=nn.ReLU()))
        self.conv2 = nn.Sequential(OrderedDict(conv=nn.Conv2d(inner, channels, 1), activate=nn.Sigmoid()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv2(self.conv1(x.mean((2, 3), keepdim=True)))


class MobileOneNet(nn.Module):
    """MobileOne without a head.

    Args:
        arch: ``'s0'`` .. ``'s4'`` or a dict, see :func:`mobileone_ext.arch.resolve_arch`.
        in_channels: channels of the image.
        out_indices: which stages to return, 0 .. 3; negative ones count from the end.
        num_conv_branches: k for every block, or one k for each stage; None takes
            the arch's. The stem keeps one branch, as in the published weights.
        use_scale, use_skip: have the 1x1 conv-BN and the BN branch (default yes).
        branches: instead of these three, the branches of every block as a list of dicts, or one such list for each
            stage, see :class:`mobileone_ext.block.MobileOneBlock`. The stem has the first stage's, of ``ConvBN`` one.
        block: makes a block from the arguments of ``MobileOneBlock``.
        norm, act, se: make a normalization layer for a channel count, an activation, and squeeze-and-excitation for a
            channel count where the arch has it; with ``se_every_block`` it is in all blocks.
        frozen_stages: -1 freezes nothing, 0 the stem, i also stages 1 .. i.
        norm_eval: keep batch norm in eval mode while training.
        deploy: build the fused form.
        train_impl: ``'branches'``, ``'moments'`` or ``'auto'``: how the blocks compute
            their training forward, see :class:`mobileone_ext.block.MobileOneBlock`.
        with_cp: activation checkpointing of each stage (less memory, more time).

    Returns (forward):
        A tuple of maps (N, C_i, H / 2^(i+2), W / 2^(i+2)), one for each of ``out_indices``,
        in the order of the stages.

    Attributes:
        in_channels, out_channels: of the image, and of the last stage.
        widths: output channels of the stem and of each stage.

    Raises:
        ValueError: for a value that is not allowed, and for weights of the other form or of other branches, however
            they are loaded; the message says which are.
        TypeError: for an argument of another type.
    """

    stage_type: type[nn.Sequential] = nn.Sequential

    def __init__(
        self,
        arch: str | dict,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (3,),
        num_conv_branches: int | Sequence[int] | None = None,
        use_scale: bool | None = None,
        use_skip: bool | None = None,
        branches: Sequence | None = None,
        block: Callable[..., nn.Module] = MobileOneBlock,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        act: Callable[[], nn.Module] = IN_PLACE,
        se: Callable[[int], nn.Module] = SqueezeExcite,
        se_every_block: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        deploy: bool = False,
        train_impl: str = 'auto',
        with_cp: bool = False,
    ):
        super().__init__()
        arch = naming('arch', arch, resolve_arch)(arch)
        flags = dict(use_scale=use_scale, use_skip=use_skip, norm_eval=norm_eval, deploy=deploy, with_cp=with_cp)
        for name, flag in flags.items():
            if flag not in (True, False, None):  # 'no' would count as True
                raise ValueError(f'{name}={flag!r}: allowed are True and False')
        self.frozen_stages = check_integer('frozen_stages', frozen_stages, -1, NUM_STAGES)
        self.out_indices = naming('out_indices', out_indices, _stage_indices)(out_indices)
        self.norm_eval, self.deploy, self.with_cp = norm_eval, deploy, with_cp

        counts = arch['num_conv_branches'] if branches is None and num_conv_branches is None else num_conv_branches
        name, given = ('num_conv_branches', counts) if branches is None else ('branches', branches)
        stem, *listed = naming(name, given, _branches_per_stage)(branches, counts, use_scale, use_skip)
        build = partial(block, norm=norm, act=act, deploy=deploy, train_impl=train_impl)
        self.widths = stage_widths(arch)
        width, *widths = self.widths
        self.in_channels, self.out_channels = in_channels, widths[-1]
        se_of_stem = se if se_every_block else None
        self.stage0 = build(in_channels, width, kernel_size=3, stride=2, branches=stem, se=se_of_stem)
        for stage, out in enumerate(widths):
            blocks = []
            num_blocks = arch['num_blocks'][stage]
            first_se = 0 if se_every_block else num_blocks - arch['num_se_blocks'][stage]
            for i in range(num_blocks):
                more = dict(branches=listed[stage], se=se if i >= first_se else None)
                blocks.append(build(width, width, kernel_size=3, stride=1 if i else 2, groups=width, **more))
                blocks.append(build(width, out, kernel_size=1, **more))
                width = out
            self.add_module(f'stage{stage + 1}', self.stage_type(*blocks))
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stage0(x)
        maps = []
        for index, stage in enumerate(self.stages()[1:]):
            if self.with_cp and self.training and isinstance(x, Tensor) and x.requires_grad:
                x = checkpoint(stage, x, use_reentrant=False, context_fn=lambda stage=stage: _once_only(stage))
            else:
                x = stage(x)
            if index in self.out_indices:
                maps.append(x)
        return tuple(maps)

    def train(self, mode: bool = True) -> 'MobileOneNet':
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def switch_to_deploy(self) -> None:
        """Fuse every block in place, in float64, or none. What could be trained still can.

        Raises:
            ValueError: for a block that cannot be fused, see ``MobileOneBlock.exact_kernel``; a block of another class
                is held against its own fused form.
        """
        kernels = []
        for name, block in self._blocks():
            try:
                kernels.append(block.exact_kernel() if _is_ours(block) else _prove_fusion(block))
            except ValueError as error:
                raise ValueError(f'{name}: {error}') from error
        for (_, block), kernel in zip(self._blocks(), kernels):
            block.switch_to_deploy(*([kernel] if kernel else []))
        self.deploy = True

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """As everywhere in torch, but for weights of the other form, which loaders that aren't strict pass over."""
        own = _branches_by_block((name for name, _ in chain(self.named_parameters(), self.named_buffers())), '')
        given = _branches_by_block(state_dict, prefix)
        for block in own.keys() & given.keys():
            if own[block] != given[block]:
                raise ValueError(
                    f'{prefix}{block}: the weights are of {_listed(given[block])}, the network has '
                    f'{_listed(own[block])}: build it with deploy=True for fused weights, or with their '
                    'num_conv_branches, use_scale, use_skip or branches; tools/reparam.py fuses weights'
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _blocks(self) -> list[tuple[str, nn.Module]]:
        stages = self.named_modules()
        return [(name, module) for name, module in stages if module is not self and hasattr(module, 'switch_to_deploy')]

    def stages(self) -> list[nn.Module]:
        return [getattr(self, f'stage{i}') for i in range(NUM_STAGES + 1)]

    def _freeze(self) -> None:
        for stage in self.stages()[: self.frozen_stages + 1]:
            stage.eval()
            stage.requires_grad_(False)


def _is_ours(block: nn.Module) -> bool:
    return getattr(block.switch_to_deploy, '__func__', None) is MobileOneBlock.switch_to_deploy


@torch.no_grad()
def _prove_fusion(block: nn.Module) -> None:
    """Hold a block's own fusion against the block, on a copy in float64 and noise.

    Raises:
        ValueError: if the fused copy computes something else.
    """
    branched = copy.deepcopy(block).double().eval()
    fused = copy.deepcopy(branched)
    fused.switch_to_deploy()
    weight = next(branched.parameters())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, block.in_channels, 16, 16, generator=generator, dtype=torch.float64).to(weight.device)
    expected, out = branched(x.clone()), fused(x.clone())
    if out.shape != expected.shape or not (out - expected).abs().max() <= 1e-6 * expected.abs().max():
        raise ValueError(f'cannot be fused: switch_to_deploy() of {type(block).__name__} changes what it computes')


def naming(name: str, config: object, build: Callable) -> Callable:
    """``build``, whose errors name the argument that it builds from."""

    def call(*args):
        try:
            return build(*args)
        except Exception as error:  # mmcv, torch and the layer's own checks, each in its own way
            raise ValueError(f'{name}={config!r}: {one_line(error)}') from error

    return call


def _branches_per_stage(
    branches: Sequence | None, counts: int | Sequence[int] | None, *flags: bool | None
) -> list[Sequence[Mapping]]:
    """The branches of the stem and of each stage, from what the backbone is told of them: for all or for each."""
    if branches is None:
        stages = [counts] * NUM_STAGES if is_integer(counts) else counts
        lists = [listed_branches(None, count, *flags) for count in stages]
    else:
        listed_branches(branches, counts, *flags)
        lists = [branches] * NUM_STAGES if any(isinstance(branch, Mapping) for branch in branches) else branches
    if len(lists) != NUM_STAGES:
        raise ValueError(f'allowed is what holds for all stages, or one for each of {NUM_STAGES}')
    stem = [dict(branch, count=1) if branch.get('type') == 'ConvBN' else branch for branch in lists[0]]
    return [stem, *lists]


def _once_only(stage: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of a checkpointed forward and its repetition, which must not count in running statistics again."""
    return nullcontext(), _keep_buffers(stage)


@contextmanager
def _keep_buffers(module: nn.Module) -> Iterator[None]:
    kept = [buffer.clone() for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in zip(module.buffers(), kept):
            buffer.data.copy_(value)  # .data: batch norm's backward holds the buffer, without need


def _stage_indices(out_indices: int | Sequence[int]) -> tuple[int, ...]:
    indices = (out_indices,) if is_integer(out_indices) else out_indices
    stages = tuple(range(NUM_STAGES)[index] for index in indices)
    if not stages or len(set(stages)) < len(stages):
        raise ValueError(f'allowed are 0 .. {NUM_STAGES - 1}, or -{NUM_STAGES} .. -1, each stage once')
    return stages


_BRANCH_KEY = re.compile(r'(stage\d+(?:\.\d+)?)\.(branch_conv_list\.\d+|branch_\w+)\.')


def _branches_by_block(keys: Iterable[str], prefix: str) -> dict[str, set[str]]:
    """Which branches these keys of a state dict are of: ``{'stage1.0': {'branch_norm', ..}}``."""
    branches = defaultdict(set)
    for key in keys:
        match = _BRANCH_KEY.match(key, len(prefix)) if key.startswith(prefix) else None
        if match:
            branches[match[1]].add(match[2])
    return branches


def _listed(branches: set[str]) -> str:
    return ', '.join(sorted(branches))
