"""Training on from ImageNet weights: 20 epochs of AdamW, warm-up over a tenth, cosine to 0.

The head is new, so its learning rate is ten times the backbone's. AdamW because a fused network has no batch
norm: by SGD it is slow at small learning rates and breaks at larger ones (docs/results/finetune.md).
"""

optim_wrapper = dict(
    constructor='mobileone_ext.GroupedOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys={'head.': dict(lr_mult=10.0)}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, begin=0, end=2, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=18, begin=2, end=20, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=1)
val_cfg = dict()
test_cfg = dict()
