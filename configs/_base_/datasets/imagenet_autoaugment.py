"""ILSVRC-2012 as in imagenet.py, with AutoAugment in training: the paper's choice for s2, s3 and s4."""

_base_ = './imagenet.py'

train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='mobileone_ext.LoadImageFromFile', lazy=True),
            dict(type='mobileone_ext.RandomResizedCrop', scale=224, backend='pillow'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='mobileone_ext.AutoAugment', policies='imagenet'),
            dict(type='PackInputs'),
        ],
    ),
)
