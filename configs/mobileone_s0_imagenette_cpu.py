"""mobileone_s0_imagenette.py for ten minutes on two CPU cores: 3,000 images at up to 128 px, 7 epochs.

    python tools/train.py configs/mobileone_s0_imagenette_cpu.py --seed 0 \\
        --cfg-options train_dataloader.dataset.data_root=DIR val_dataloader.dataset.data_root=DIR

DIR holds train/WNID/*.JPEG and val/WNID/*.JPEG; here 300 images a class of Imagenette to train
on, 1,000 to validate. 658 steps from scratch show that the recipe runs, not what it is worth:
31.8 % top-1 (averaged weights; guessing: 10 %) after 5:52 minutes on two cores (AMD EPYC, torch
2.14.1). By their branches: 31.7 % after 9:47, and 24.4 % in another run with the same seed, so
expect either.
"""

_base_ = './mobileone_s0_imagenette.py'

train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    pin_memory=False,
    dataset=dict(
        pipeline=[
            dict(type='mobileone_ext.LoadImageFromFile', lazy=True),
            dict(type='mobileone_ext.RandomResizedCrop', scale=128, backend='pillow'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=1,
    pin_memory=False,
    dataset=dict(
        pipeline=[
            dict(type='mobileone_ext.LoadImageFromFile'),
            dict(type='ResizeEdge', scale=146, edge='short', backend='pillow'),
            dict(type='CenterCrop', crop_size=128),
            dict(type='PackInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, begin=0, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=6, begin=1, end=7, by_epoch=True, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingParamScheduler',
        param_name='weight_decay',
        eta_min_ratio=0.1,
        T_max=7,
        begin=0,
        end=7,
        by_epoch=True,
    ),
]
train_cfg = dict(max_epochs=7, val_interval=7)
custom_hooks = [
    dict(type='EMAHook', momentum=0.02, update_buffers=True, priority='ABOVE_NORMAL'),
    dict(
        type='mobileone_ext.CurriculumHook',
        stages=[
            dict(epoch=0.0, size=5 / 7),
            dict(epoch=37 / 300, size=6 / 7),
            dict(epoch=112 / 300, size=1.0),
        ],
    ),
]
