"""The paper's schedule (arXiv 2206.04040, section 4.1): 300 epochs at batch 256.

Paper: lr 0.1 annealed by a cosine (to what, it does not say), weight decay by another from 1e-4 to 1e-5.
Where it is silent, as in mmpretrain: momentum 0.9, 5 epochs of linear warm-up
from 0.001 x lr, cosine to 1e-6, no weight decay on normalization layers.

EMA decay 0.9995 is the paper's, for all variants, and so is progressive learning
(section 3.3), on size alone for s0 and s1; the sizes and the epochs 37 and 112 of 300
are mmpretrain's, and agree with the steps in the paper's Fig. 4. As fractions they
keep the shape of a shorter run.
"""

optim_wrapper = dict(
    constructor='mobileone_ext.GroupedOptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, begin=0, end=5, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=295, eta_min=1e-6, begin=5, end=300, by_epoch=True),
    dict(
        type='CosineAnnealingParamScheduler',
        param_name='weight_decay',
        T_max=300,
        eta_min_ratio=0.1,  # a ratio, not eta_min=1e-5: groups without decay stay at 0
        begin=0,
        end=300,
        by_epoch=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=256)
custom_hooks = [
    dict(type='EMAHook', momentum=5e-4, update_buffers=True, priority='ABOVE_NORMAL'),
    dict(
        type='mobileone_ext.CurriculumHook',
        stages=[
            dict(epoch=0.0, size=160),
            dict(epoch=37 / 300, size=192),
            dict(epoch=112 / 300, size=224),
        ],
    ),
]
