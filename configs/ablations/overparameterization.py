"""How many convolution branches, k = 1 .. 5? (arXiv 2206.04040, Table 6)

For s0 the paper finds 70.9, 70.7, 71.3, 71.4, 71.1; for s1, with --base
configs/mobileone_s1_8xb32.py, 75.9, 75.7, 75.6, 75.6, 75.2.
"""

title = 'Over-parameterization factor k'
variants = {
    'k = 1': {'model.backbone.num_conv_branches': 1},
    'k = 2': {'model.backbone.num_conv_branches': 2},
    'k = 3': {'model.backbone.num_conv_branches': 3},
    'k = 4': {'model.backbone.num_conv_branches': 4},
    'k = 5': {'model.backbone.num_conv_branches': 5},
}
paper = dict(
    source='arXiv 2206.04040, Table 6: s0, ImageNet',
    numbers={'k = 1': 70.9, 'k = 2': 70.7, 'k = 3': 71.3, 'k = 4': 71.4, 'k = 5': 71.1},
)
