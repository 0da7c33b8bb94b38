"""An initializer for one arm of the study: every block's output starts with the deviation of one branch's."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mobileone_ext.block import MobileOneBlock
from mobileone_ext.registry import WEIGHT_INITIALIZERS


@WEIGHT_INITIALIZERS.register_module()
class EqualNorms:
    """An ``init_cfg``: the weight of each norm of a block of n branches becomes 1 / sqrt(n); put it last.

    n is counted block by block: a stride-1 depthwise block of S0 has six, a strided one five.
    """

    def __call__(self, module: nn.Module) -> None:
        for block in module.modules():
            if isinstance(block, MobileOneBlock):
                norms = [child for child in block.modules() if isinstance(child, _BatchNorm)]
                for norm in norms:
                    nn.init.constant_(norm.weight, len(norms) ** -0.5)
