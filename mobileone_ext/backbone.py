"""MobileOne as an mmpretrain backbone, registered as ``mobileone_ext.MobileOne``.

MobileOne: An Improved One Millisecond Mobile Backbone, arXiv 2206.04040. A stem
and four stages of depthwise + pointwise blocks; every stage halves the plane.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import TypeVar

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.logging import print_log
from mmengine.model import BaseModule, Sequential
from mmengine.model.utils import _BatchNormXd
from mmpretrain.models.utils import SELayer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .arch import resolve_arch, stage_widths
from .arguments import check_bool, check_integer, is_integer, is_list
from .block import MobileOneBlock
from .moments import kernels
from .moments.guard import PLAIN_NORMS
from .registry import MODELS
from .text import one_line

NUM_STAGES = 4
T = TypeVar('T')

kernels.report = lambda message, level: print_log(message, 'current', level)
PLAIN_NORMS.add(_BatchNormXd)  # what mmengine makes of SyncBN where there is one process


@MODELS.register_module()
class MobileOne(BaseModule):
    """MobileOne backbone.

    Args:
        arch: ``'s0'`` .. ``'s4'`` or a dict, see :func:`mobileone_ext.arch.resolve_arch`.
        in_channels: channels of the image.
        out_indices: which stages to return, 0 .. 3; negative ones count from the end.
        num_conv_branches: k for every block, or one k for each stage; None takes
            the arch's. The stem keeps one branch, as in the published weights.
        use_scale, use_skip: have the 1x1 conv-BN and the BN branch.
        act_cfg, norm_cfg: as everywhere in mmcv; the norm is BN or SyncBN, others do not fuse.
        se_cfg: arguments of mmpretrain's ``SELayer`` where the arch has SE; with
            ``every_block=True`` in all blocks.
        frozen_stages: -1 freezes nothing, 0 the stem, i also stages 1 .. i.
        norm_eval: keep batch norm in eval mode while training.
        deploy: build the fused form.
        train_impl: ``'branches'``, ``'moments'`` or ``'auto'``: how the blocks compute
            their training forward, see :class:`mobileone_ext.block.MobileOneBlock`.
        with_cp: activation checkpointing of each stage (less memory, more time).
        init_cfg: mmengine initialization; default Kaiming for convolutions.

    Returns (forward):
        A tuple of maps (N, C_i, H / 2^(i+2), W / 2^(i+2)), one for each of ``out_indices``,
        in the order of the stages.

    Attributes:
        in_channels, out_channels: of the image, and of the last stage.

    Weights of the other form: fused ones loaded into a network with branches fuse it (a
    line says so), and it then refuses to train; branched ones don't load into a fused network.

    Raises:
        ValueError: for a value that is not allowed; the message says which are.
    """

    def __init__(
        self,
        arch: str | dict,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (3,),
        num_conv_branches: int | Sequence[int] | None = None,
        use_scale: bool = True,
        use_skip: bool = True,
        act_cfg: dict = dict(type='ReLU', inplace=True),
        norm_cfg: dict = dict(type='BN'),
        se_cfg: dict = dict(ratio=16),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        deploy: bool = False,
        train_impl: str = 'auto',
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = (
            dict(type='Kaiming', layer=['Conv2d']),
            dict(type='Constant', val=1, layer=['_BatchNorm']),
        ),
    ):
        if not isinstance(init_cfg, dict | list | tuple | None):
            raise ValueError(f'init_cfg={init_cfg!r}: allowed are a dict, a list of them, and None')
        super().__init__(list(init_cfg) if isinstance(init_cfg, tuple) else init_cfg)
        arch = resolve_arch(arch)
        branches = _per_stage(num_conv_branches, arch['num_conv_branches'])
        flags = dict(use_scale=use_scale, use_skip=use_skip, norm_eval=norm_eval, deploy=deploy, with_cp=with_cp)
        for name, flag in flags.items():
            check_bool(name, flag)
        check_integer('in_channels', in_channels, 1)
        check_integer('frozen_stages', frozen_stages, -1, NUM_STAGES)
        self.out_indices = _stage_indices(out_indices)
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self.deploy, self.with_cp = deploy, with_cp
        self._fused_by_loading = False

        se_cfg = dict(_checked('se_cfg', se_cfg, lambda: se_cfg))
        se_every_block = se_cfg.pop('every_block', False)
        check_bool("se_cfg['every_block']", se_every_block)
        _checked('se_cfg', se_cfg, lambda: SELayer(16, **se_cfg))
        _checked('norm_cfg', norm_cfg, lambda: _check_norm(build_norm_layer(norm_cfg, 16)[1]))
        _checked('act_cfg', act_cfg, lambda: build_activation_layer(act_cfg))
        block = partial(
            MobileOneBlock,
            use_scale=use_scale,
            use_skip=use_skip,
            norm=lambda channels: build_norm_layer(norm_cfg, channels)[1],
            act=partial(build_activation_layer, act_cfg),
            deploy=deploy,
            train_impl=train_impl,
        )
        squeeze = partial(SELayer, **se_cfg)
        stem_width, *widths = stage_widths(arch)
        self.stage0 = block(in_channels, stem_width, kernel_size=3, stride=2, se=squeeze if se_every_block else None)
        self.in_channels, self.out_channels = in_channels, widths[-1]
        width = stem_width
        for stage in range(NUM_STAGES):
            blocks = []
            num_blocks = arch['num_blocks'][stage]
            first_se = 0 if se_every_block else num_blocks - arch['num_se_blocks'][stage]
            for i in range(num_blocks):
                options = dict(num_conv_branches=branches[stage], se=squeeze if i >= first_se else None)
                stride = 2 if i == 0 else 1
                blocks.append(block(width, width, kernel_size=3, stride=stride, groups=width, **options))
                blocks.append(block(width, widths[stage], kernel_size=1, **options))
                width = widths[stage]
            self.add_module(f'stage{stage + 1}', Sequential(*blocks))
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self._fused_by_loading and self.training and torch.is_grad_enabled():
            raise ValueError(
                'fused weights were loaded into this network with branches, which has been fused since: nothing of it '
                'would learn; give the weights their branches back with tools/convert_checkpoint.py --branched, or '
                'train the fused network, built with deploy=True'
            )
        x = self.stage0(x)
        maps = []
        for index, stage in enumerate(self._stages()[1:]):
            if self.with_cp and self.training and isinstance(x, Tensor) and x.requires_grad:
                x = checkpoint(stage, x, use_reentrant=False, context_fn=lambda stage=stage: _once_only(stage))
            else:
                x = stage(x)
            if index in self.out_indices:
                maps.append(x)
        return tuple(maps)

    def train(self, mode: bool = True) -> 'MobileOne':
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
            ValueError: for branches that cannot be fused, see ``MobileOneBlock.exact_kernel``.
        """
        kernels = []
        for name, block in self._blocks():
            try:
                kernels.append(None if block.deploy else block.exact_kernel())
            except ValueError as error:
                raise ValueError(f'{name}: {error}') from error
        for (_, block), kernel in zip(self._blocks(), kernels):
            block.switch_to_deploy(kernel)
        self.deploy = True

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """As everywhere in torch, but for weights of the other form, which loaders that aren't strict pass over."""
        own = _branches_by_block((name for name, _ in chain(self.named_parameters(), self.named_buffers())), '')
        given = _branches_by_block(state_dict, prefix)
        for block in own.keys() & given.keys():
            if own[block] == given[block]:
                continue
            if all(given.get(name) == _FUSED for name in own):
                self.switch_to_deploy()
                self._fused_by_loading = True
                print_log('fused weights for a network with branches: it is fused now, to predict', 'current')
                break
            raise ValueError(
                f'{prefix}{block}: the weights are of {_listed(given[block])}, the network has {_listed(own[block])}; '
                'deploy, num_conv_branches, use_scale and use_skip set what it has, tools/reparam.py fuses weights'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _blocks(self) -> list[tuple[str, MobileOneBlock]]:
        return [(name, module) for name, module in self.named_modules() if isinstance(module, MobileOneBlock)]

    def _stages(self) -> list[nn.Module]:
        return [getattr(self, f'stage{i}') for i in range(NUM_STAGES + 1)]

    def _freeze(self) -> None:
        for stage in self._stages()[: self.frozen_stages + 1]:
            stage.eval()
            stage.requires_grad_(False)


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


def _checked(name: str, config: object, build: Callable[[], T]) -> T:
    """What ``build`` makes of ``config``; it draws no random numbers."""
    if not isinstance(config, dict):
        raise ValueError(f'{name}={config!r}: allowed is a dict')
    try:
        with torch.random.fork_rng(devices=[]):
            return build()
    except Exception as error:  # mmcv, torch and the layer's own checks, each in its own way
        raise ValueError(f'{name}={config!r}: {one_line(error)}') from error


def _check_norm(norm: nn.Module) -> None:
    if not isinstance(norm, _BatchNorm) or not norm.track_running_stats:
        raise ValueError(f'{type(norm).__name__} does not fuse; batch norm with running statistics does: BN, SyncBN')


def _per_stage(num_conv_branches: int | Sequence[int] | None, default: list[int]) -> list[int]:
    if num_conv_branches is None:
        return default
    if is_integer(num_conv_branches):
        num_conv_branches = [num_conv_branches] * NUM_STAGES
    if not is_list(num_conv_branches) or len(num_conv_branches) != NUM_STAGES:
        raise ValueError(f'num_conv_branches={num_conv_branches!r}: allowed are a count, or {NUM_STAGES}, one a stage')
    return [check_integer('num_conv_branches', count, 0) for count in num_conv_branches]


def _stage_indices(out_indices: int | Sequence[int]) -> tuple[int, ...]:
    indices = (out_indices,) if is_integer(out_indices) else out_indices
    allowed = f'allowed are 0 .. {NUM_STAGES - 1}, or -{NUM_STAGES} .. -1, or a list of these, each stage once'
    if not is_list(indices) or not indices:
        raise ValueError(f'out_indices={out_indices!r}: {allowed}')
    if not all(is_integer(index) and -NUM_STAGES <= index < NUM_STAGES for index in indices):
        raise ValueError(f'out_indices={out_indices!r}: {allowed}')
    stages = tuple(int(index) % NUM_STAGES for index in indices)
    if len(set(stages)) < len(stages):
        raise ValueError(f'out_indices={out_indices!r}: {allowed}')
    return stages


_FUSED = {'branch_reparam'}
_BRANCH_KEY = re.compile(r'(stage\d+(?:\.\d+)?)\.(branch_conv_list\.\d+|branch_\w+)\.')


def _branches_by_block(keys: Iterable[str], prefix: str) -> dict[str, set[str]]:
    """Which branches these keys of a state dict are of: ``{'stage1.0': {'branch_norm', ..}}``."""
    found = defaultdict(set)
    for key in keys:
        match = _BRANCH_KEY.match(key, len(prefix)) if key.startswith(prefix) else None
        if match:
            found[match[1]].add(match[2])
    return found


def _listed(branches: set[str]) -> str:
    return ', '.join(sorted(branches))
