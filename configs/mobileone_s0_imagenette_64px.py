"""Imagenette from scratch in 6 epochs of every third photo at up to 64 px: three minutes on one CPU core, for studies.

    python tools/ablate.py configs/ablations/branches.py --base configs/mobileone_s0_imagenette_64px.py --data DIR

DIR holds train/WNID/* and val/WNID/*, 9,469 and 3,925 photos. Results: docs/results/ablations.md, which says what the
averaged weights, tested here, do to a network of one convolution beside skip and scale in so short a run.
"""

_base_ = './mobileone_s0_imagenette_96px.py'

test_pipeline = [
    dict(type='mobileone_ext.LoadImageFromFile'),
    dict(type='ResizeEdge', scale=73, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=64),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    dataset=dict(
        indices=list(range(0, 9469, 3)),
        pipeline=[
            dict(type='mobileone_ext.LoadImageFromFile', lazy=True),
            dict(type='mobileone_ext.RandomResizedCrop', scale=64, backend='pillow'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ],
    ),
)
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, begin=0, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=5, begin=1, end=6, by_epoch=True, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingParamScheduler',
        param_name='weight_decay',
        eta_min_ratio=0.1,
        T_max=6,
        begin=0,
        end=6,
        by_epoch=True,
    ),
]
train_cfg = dict(max_epochs=6)
