"""A MobileOne of s0's widths with a third of its blocks, digits at 32 px, 8 epochs: under a minute on one CPU core.

For studies of many runs and for tests; ablation tables made with it say what the
branches do to this network, not to s0 on ImageNet.
"""

_base_ = './mobileone_s0_digits.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True, num_blocks=[1, 2, 3, 1], width_factor=[0.75, 1.0, 1.0, 2.0], num_conv_branches=[4, 4, 4, 4]
        ),
    ),
)
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        pipeline=[
            dict(type='mobileone_ext.LoadImageFromFile'),
            dict(type='Resize', scale=(32, 32), backend='pillow'),
            dict(type='PackInputs'),
        ]
    ),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        pipeline=[
            dict(type='mobileone_ext.LoadImageFromFile'),
            dict(type='Resize', scale=(32, 32), backend='pillow'),
            dict(type='PackInputs'),
        ]
    ),
)
test_dataloader = val_dataloader
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=1, T_max=7, end=8, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=8)
