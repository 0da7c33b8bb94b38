"""mobileone_s0_imagenette_96px.py by mmpretrain's network and pipeline, in as many steps as fit into the same minutes.

185 steps, 1.25 epochs: a step takes four times as long. As in mmpretrain's config of S0 there is no curriculum and the
memory format is torch's own; learning rate, warm-up (a fifth), label smoothing and averaged weights are those of the
other config, because mmpretrain's own are made for 1.5 million steps.
"""

_base_ = './mobileone_s0_imagenette_96px.py'

model = dict(backbone=dict(_delete_=True, type='mmpretrain.MobileOne', arch='s0', out_indices=(3,)))
train_dataloader = dict(
    dataset=dict(
        type='CustomDataset',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomResizedCrop', scale=96, backend='pillow'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ],
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, begin=0, end=37, by_epoch=False),
    dict(type='CosineAnnealingLR', T_max=148, begin=37, end=185, by_epoch=False),
    dict(
        type='CosineAnnealingParamScheduler',
        param_name='weight_decay',
        eta_min_ratio=0.1,
        T_max=185,
        begin=0,
        end=185,
        by_epoch=False,
    ),
]
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=185, val_interval=37)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=37), channels_last=None)
log_processor = dict(by_epoch=False)
custom_hooks = [dict(type='EMAHook', momentum=0.02, update_buffers=True, priority='ABOVE_NORMAL')]
