"""Other initial weights for the batch norms of a block's skip and scale branch than for those of its convolutions."""

from torch import nn

from ..registry import WEIGHT_INITIALIZERS


@WEIGHT_INITIALIZERS.register_module()
class BranchNorms:
    """An ``init_cfg`` that sets the weights (gamma) of the batch norms of skip and scale branches; put it last.

    A batch norm's output has the deviation gamma, whatever its input, so these weigh the branches that pass
    their input on against the convolutions, whose norms start at 1.

    Args:
        skip, scale: for the branch of batch norm alone, and for the 1x1 one.
    """

    def __init__(self, skip: float = 1.0, scale: float = 1.0):
        self.skip, self.scale = float(skip), float(scale)

    def __call__(self, module: nn.Module) -> None:
        for name, child in module.named_modules():
            for ending, value in (('branch_norm', self.skip), ('branch_scale.norm', self.scale)):
                if not name.endswith(ending):
                    continue
                if child.weight is None:
                    raise ValueError(f'BranchNorms: {name} has no weight: norm_cfg must not have affine=False')
                nn.init.constant_(child.weight, value)
