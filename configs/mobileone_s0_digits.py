"""MobileOne-S0 with all its branches on handwritten digits: minutes on two CPU cores."""

_base_ = ['./_base_/models/mobileone_s0.py', './_base_/datasets/digits.py', './_base_/default_runtime.py']

model = dict(
    data_preprocessor=dict(num_classes=10),
    head=dict(num_classes=10, loss=dict(_delete_=True, type='CrossEntropyLoss')),
)
optim_wrapper = dict(
    constructor='mobileone_ext.GroupedOptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=1, T_max=11, end=12, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(logger=dict(interval=15))
