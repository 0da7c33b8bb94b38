"""Which branches to train with: the paper's, those of other papers, none. The deployed network is the same.

    python tools/ablate.py configs/ablations/branch_types.py --base configs/mobileone_s0_imagenette_64px.py --data DIR

ACNet (arXiv 1908.03930) adds a 1xK and a Kx1 convolution to each KxK one; Diverse Branch Block (arXiv 2103.13425) adds
1x1, 1x1 - KxK and 1x1 - average pooling. Neither adds to 1x1 blocks what these could not do alone.
What is tested are the weights as trained: over so few steps a moving average of the factors of a product (1x1 - KxK)
and of the norm between them is far from the product.
Results: docs/results/branch_types/results.md.
"""

_stages = [dict(epoch=0.0, size=5 / 7), dict(epoch=37 / 300, size=6 / 7), dict(epoch=112 / 300, size=1.0)]
_no_average = {'custom_hooks': [dict(type='mobileone_ext.CurriculumHook', stages=_stages)]}


def _branches(*types):
    return {'model.backbone.branches': [dict(type=name) for name in types], **_no_average}


title = 'Branches of MobileOne, ACNet and Diverse Branch Block'
variants = {
    'paper': _no_average,
    'ACNet': _branches('ConvBN', 'Conv1xKBN', 'ConvKx1BN'),
    'DBB': _branches('ConvBN', 'PointwiseBN', 'PointwiseConvBN', 'PointwisePoolBN'),
    'plain': _branches('ConvBN'),
}
