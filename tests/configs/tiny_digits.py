"""The digits run with a network of a few thousand parameters: EMA, augmentation and schedule as in a big one."""

_base_ = '../../configs/mobileone_s0_digits.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            num_blocks=[1, 1, 1, 1],
            width_factor=[0.125, 0.125, 0.0625, 0.0625],
            num_conv_branches=[2, 2, 2, 2],
        )
    ),
    head=dict(in_channels=32),
)
train_dataloader = dict(
    dataset=dict(
        indices=240,
        pipeline=[
            dict(type='mobileone_ext.LoadImageFromFile'),
            dict(type='RandomResizedCrop', scale=32, crop_ratio_range=(0.7, 1.0), backend='pillow'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='mobileone_ext.LoadImageFromFile'),
            dict(type='Resize', scale=(32, 32), backend='pillow'),
            dict(type='PackInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
param_scheduler = [dict(type='CosineAnnealingLR', begin=0, T_max=4, end=4, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=4)
custom_hooks = [dict(type='EMAHook', momentum=0.05, update_buffers=True, priority='ABOVE_NORMAL')]
