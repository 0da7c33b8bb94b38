"""MobileOne as an mmpretrain backbone, registered as ``mobileone_ext.MobileOne``.

MobileOne: An Improved One Millisecond Mobile Backbone, arXiv 2206.04040. A stem
and four stages of depthwise + pointwise blocks; every stage halves the plane.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.model import BaseModule, Sequential
from mmpretrain.models.utils import SELayer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .arch import resolve_arch, stage_widths
from .block import MobileOneBlock
from .registry import MODELS

NUM_STAGES = 4


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
        act_cfg, norm_cfg: as everywhere in mmcv; norms that fuse are BN and SyncBN.
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
        A tuple of maps (N, C_i, H / 2^(i+2), W / 2^(i+2)), one for each of ``out_indices``.

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
        super().__init__(list(init_cfg) if isinstance(init_cfg, tuple) else init_cfg)
        arch = resolve_arch(arch)
        branches = _per_stage(num_conv_branches, arch['num_conv_branches'])
        if not -1 <= frozen_stages <= NUM_STAGES:
            raise ValueError(f'frozen_stages={frozen_stages}: allowed are -1 (none), 0 (the stem) .. {NUM_STAGES}')
        self.out_indices = _stage_indices(out_indices)
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self.deploy, self.with_cp = deploy, with_cp

        se_cfg = dict(se_cfg)
        se_every_block = se_cfg.pop('every_block', False)
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
        x = self.stage0(x)
        maps = []
        for index, stage in enumerate(self._stages()[1:]):
            if self.with_cp and self.training and x.requires_grad:
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
        """Fuse every block in place, in float64; parameters stay trainable."""
        for module in self.modules():
            if isinstance(module, MobileOneBlock):
                module.switch_to_deploy()
        self.deploy = True

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


def _per_stage(num_conv_branches: int | Sequence[int] | None, default: list[int]) -> list[int]:
    if num_conv_branches is None:
        return default
    if isinstance(num_conv_branches, int):
        return [num_conv_branches] * NUM_STAGES
    if len(num_conv_branches) != NUM_STAGES:
        raise ValueError(f'num_conv_branches={num_conv_branches}: an int, or four of them, one for each stage')
    return list(num_conv_branches)


def _stage_indices(out_indices: int | Sequence[int]) -> tuple[int, ...]:
    indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    for index in indices:
        if not -NUM_STAGES <= index < NUM_STAGES:
            raise ValueError(f'out_indices={out_indices}: allowed are 0 .. {NUM_STAGES - 1}, or -{NUM_STAGES} .. -1')
    return tuple(index % NUM_STAGES for index in indices)
