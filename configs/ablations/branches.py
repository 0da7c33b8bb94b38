"""Which of the train-time branches pay? (arXiv 2206.04040, Table 5)

The paper compares all branches with none and gives both for s0 on ImageNet:
71.4 and 69.6; for s1 75.9 and 74.6, for s3 78.1 and 77.2.
"""

title = 'Re-parameterizable branches'
variants = {
    'all branches': {},
    'no scale': {'model.backbone.use_scale': False},
    'no skip': {'model.backbone.use_skip': False},
    'no scale, no skip': {'model.backbone.use_scale': False, 'model.backbone.use_skip': False},
    'plain': {
        'model.backbone.use_scale': False,
        'model.backbone.use_skip': False,
        'model.backbone.num_conv_branches': 1,
    },
}
paper = dict(source='arXiv 2206.04040, Table 5: s0, ImageNet', numbers={'all branches': 71.4, 'plain': 69.6})
