"""Imagenette from scratch at up to 96 px in 5 epochs: 10 to 15 minutes on one CPU core (Intel Xeon).

    python tools/train.py configs/mobileone_s0_imagenette_96px.py --seed 0 \\
        --cfg-options train_dataloader.dataset.data_root=DIR val_dataloader.dataset.data_root=DIR \\
        test_dataloader.dataset.data_root=DIR

DIR holds train/WNID/* and val/WNID/*, 9,469 and 3,925 photos. The curve is measured on every fifth photo of val, the
test on all. Results, beside mmpretrain's network in the same minutes: docs/results/imagenette.md.
"""

_base_ = './mobileone_s0_imagenette_cpu.py'

test_pipeline = [
    dict(type='mobileone_ext.LoadImageFromFile'),
    dict(type='ResizeEdge', scale=110, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=96),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    dataset=dict(
        pipeline=[
            dict(type='mobileone_ext.LoadImageFromFile', lazy=True),
            dict(type='mobileone_ext.RandomResizedCrop', scale=96, backend='pillow'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ],
    ),
)
test_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
val_dataloader = dict(
    batch_size=64,
    dataset=dict(
        indices=list(range(0, 3925, 5)),
        pipeline=test_pipeline,
    ),
)
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, begin=0, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=4, begin=1, end=5, by_epoch=True, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingParamScheduler',
        param_name='weight_decay',
        eta_min_ratio=0.1,
        T_max=5,
        begin=0,
        end=5,
        by_epoch=True,
    ),
]
train_cfg = dict(max_epochs=5, val_interval=1)
