"""MobileOne as an mmpretrain backbone, registered as ``mobileone_ext.MobileOne``.

The network itself is in network.py, in torch alone; here its parts come from configs, and mmengine initializes it.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial

from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.logging import print_log
from mmengine.model import BaseModule, Sequential
from mmengine.model.utils import _BatchNormXd
from mmpretrain.models.utils import SELayer
from mmpretrain.registry import MODELS as ALL_MODELS
from torch import nn

from .block import MobileOneBlock
from .branches import running_affine
from .moments import kernels
from .moments.guard import PLAIN_NORMS
from .network import MobileOneNet, naming
from .registry import MODELS

kernels.report = lambda message, level: print_log(message, 'current', level)
PLAIN_NORMS.add(_BatchNormXd)  # what mmengine makes of SyncBN where there is one process


@MODELS.register_module()
class MobileOne(MobileOneNet, BaseModule):
    """MobileOne backbone: :class:`mobileone_ext.network.MobileOneNet`, whose arguments it has, built from a config.

    Args:
        block: a class with the arguments of ``MobileOneBlock``, its name in a registry, or a dict of ``type`` and
            further arguments; None takes ``MobileOneBlock``.
        act_cfg, norm_cfg: as everywhere in mmcv; the norm is BN or SyncBN, others do not fuse.
        se_cfg: arguments of mmpretrain's ``SELayer`` where the arch has SE; with
            ``every_block=True`` in all blocks.
        init_cfg: mmengine initialization; default Kaiming for convolutions.
    """

    stage_type = Sequential

    def __init__(
        self,
        *args,
        block: type[nn.Module] | str | dict | None = None,
        act_cfg: dict = dict(type='ReLU', inplace=True),
        norm_cfg: dict = dict(type='BN'),
        se_cfg: dict = dict(ratio=16),
        init_cfg: dict | list[dict] | None = (
            dict(type='Kaiming', layer=['Conv2d']),
            dict(type='Constant', val=1, layer=['_BatchNorm']),
        ),
        **options,
    ):
        squeeze_cfg = naming('se_cfg', se_cfg, dict)(se_cfg)
        super().__init__(
            *args,
            block=naming('block', block, _block_class)(block),
            norm=naming('norm_cfg', norm_cfg, lambda channels: _build_norm(norm_cfg, channels)),
            act=naming('act_cfg', act_cfg, lambda: build_activation_layer(act_cfg)),
            se_every_block=squeeze_cfg.pop('every_block', False),
            se=naming('se_cfg', se_cfg, lambda channels: SELayer(channels, **squeeze_cfg)),
            **options,
        )
        self.init_cfg = copy.deepcopy(list(init_cfg) if isinstance(init_cfg, tuple) else init_cfg)


def _block_class(block: type[nn.Module] | str | dict | None) -> Callable[..., nn.Module]:
    """What builds a block; arguments that ``block`` gives go before those of the network."""
    more = dict(block) if isinstance(block, Mapping) else {}
    kind = more.pop('type', block)
    build = partial(MobileOneBlock if kind is None else ALL_MODELS.get(kind) if isinstance(kind, str) else kind)
    return lambda *args, **options: build(*args, **{**options, **more})


def _build_norm(norm_cfg: dict, channels: int) -> nn.Module:
    norm = build_norm_layer(norm_cfg, channels)[1]
    running_affine(norm)  # raises where it cannot be fused, which would show after the training
    return norm
