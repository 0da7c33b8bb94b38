"""Handwritten digits, 1,437 to train on and 360 to test on, as PNG files in class folders.

mobileone_ext.data.digits.write_digits makes data/digits from scikit-learn's copy of the
UCI set (8 x 8 scans); no download.
"""

train_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mobileone_ext.CustomDataset',
        data_root='data/digits',
        data_prefix='train',
        pipeline=[
            dict(type='mobileone_ext.LoadImageFromFile'),
            dict(type='Resize', scale=(64, 64), backend='pillow'),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=60,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mobileone_ext.CustomDataset',
        data_root='data/digits',
        data_prefix='val',
        pipeline=[
            dict(type='mobileone_ext.LoadImageFromFile'),
            dict(type='Resize', scale=(64, 64), backend='pillow'),
            dict(type='PackInputs'),
        ],
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
