"""Do skip and scale branches that start smaller let the convolutions beside them learn faster?

Every batch norm starts with weight 1, so of a new block with one convolution two thirds hardly change its input. Here
the norms of skip and scale start smaller.
"""


def _start(weight):
    return [
        dict(type='Kaiming', layer=['Conv2d']),
        dict(type='Constant', val=1, layer=['_BatchNorm']),
        dict(type='mobileone_ext.BranchNorms', skip=weight, scale=weight),
    ]


title = 'Initial weights of the norms of skip and scale'
variants = {
    'k = 1': {'model.backbone.num_conv_branches': 1},
    'k = 1, from 0.2': {'model.backbone.num_conv_branches': 1, 'model.backbone.init_cfg': _start(0.2)},
    'k = 1, from 0': {'model.backbone.num_conv_branches': 1, 'model.backbone.init_cfg': _start(0.0)},
    'all branches, from 0.2': {'model.backbone.init_cfg': _start(0.2)},
}
