"""Which branches to train with: the paper's, those of other papers, none. The deployed network is the same.

    python tools/ablate.py configs/ablations/branch_types.py --base configs/mobileone_s0_imagenette_64px.py --data DIR

ACNet (arXiv 1908.03930) adds a 1xK and a Kx1 convolution to each KxK one; Diverse Branch Block (arXiv 2103.13425) adds
1x1, 1x1 - KxK and 1x1 - average pooling. Neither adds to 1x1 blocks what these could not do alone.
Results: docs/results/branch_types/results.md.
"""


def _branches(*types):
    return {'model.backbone.branches': [dict(type=name) for name in types]}


title = 'Branches of MobileOne, ACNet and Diverse Branch Block'
variants = {
    'paper': {},
    'ACNet': _branches('ConvBN', 'Conv1xKBN', 'ConvKx1BN'),
    'DBB': _branches('ConvBN', 'PointwiseBN', 'PointwiseConvBN', 'PointwisePoolBN'),
    'plain': _branches('ConvBN'),
}
