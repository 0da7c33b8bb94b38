"""MobileOne-S0 on ten ImageNet classes: the paper's recipe in small, for research on one GPU.

    python tools/train.py configs/mobileone_s0_imagenette.py \\
        --cfg-options train_dataloader.dataset.data_root=DIR val_dataloader.dataset.data_root=DIR \\
        test_dataloader.dataset.data_root=DIR

DIR holds train/WNID/*.JPEG and val/WNID/*.JPEG, e.g. Imagenette (9,469 images to
train on). All parts of the recipe are here: curriculum, annealed weight decay,
label smoothing and EMA, over 100 epochs; the EMA is faster than the paper's, as
the run has fewer steps. Not run on a GPU by this project yet; the CPU variant is
mobileone_s0_imagenette_cpu.py.
"""

_base_ = [
    './_base_/models/mobileone_s0.py',
    './_base_/datasets/imagenette.py',
    './_base_/schedules/imagenet_300e.py',
    './_base_/default_runtime.py',
]

model = dict(data_preprocessor=dict(num_classes=10), head=dict(num_classes=10))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, begin=0, end=5, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=95, begin=5, end=100, by_epoch=True, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingParamScheduler',
        param_name='weight_decay',
        eta_min_ratio=0.1,
        T_max=100,
        begin=0,
        end=100,
        by_epoch=True,
    ),
]
train_cfg = dict(max_epochs=100, val_interval=5)
auto_scale_lr = dict(base_batch_size=128)
custom_hooks = [
    dict(type='EMAHook', momentum=2e-3, update_buffers=True, priority='ABOVE_NORMAL'),
    dict(
        type='mobileone_ext.CurriculumHook',
        stages=[
            dict(epoch=0.0, size=5 / 7),
            dict(epoch=37 / 300, size=6 / 7),
            dict(epoch=112 / 300, size=1.0),
        ],
    ),
]
