"""Few parameter groups instead of one a parameter.

mmengine's ``paramwise_cfg`` makes a group of every parameter: 1,321 for s0, each
stepped on its own. Groups with the same options are merged here, so the fused
optimizer kernels work on long lists and a schedule shows two curves, not 1,321.
"""

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ..registry import OPTIM_WRAPPER_CONSTRUCTORS

_OPTIONS = {
    'bias_decay_mult', 'bias_lr_mult', 'bypass_duplicate', 'custom_keys', 'dcn_offset_lr_mult', 'dwconv_decay_mult',
    'flat_decay_mult', 'norm_decay_mult',
}  # fmt: skip


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor, with parameter groups of equal options merged.

    Raises:
        ValueError: for a key in ``paramwise_cfg`` that it would pass over, so that all weights decay.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        unread = set(self.paramwise_cfg) - _OPTIONS
        if unread:
            raise ValueError(f'optim_wrapper.paramwise_cfg: nothing reads {", ".join(unread)}')

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs) -> None:
        super().add_params(params, module, prefix=prefix, **kwargs)
        if not prefix:
            params[:] = merge_groups(params)


def merge_groups(groups: list[dict]) -> list[dict]:
    """Groups (``params`` and options) with equal options merged, in order of first appearance."""
    merged = {}
    for group in groups:
        options = {key: value for key, value in group.items() if key != 'params'}
        entry = merged.setdefault(tuple(sorted(options.items())), dict(options, params=[]))
        entry['params'].extend(group['params'])
    return list(merged.values())
