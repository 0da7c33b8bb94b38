"""ILSVRC-2012 as in imagenet.py, with AutoAugment in training: the paper's choice for s2, s3 and s4."""

_base_ = './imagenet.py'

train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='mobileone_ext.LoadImageFromFile'),
            dict(type='RandomResizedCrop', scale=224, backend='pillow'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            # The padding is the mean colour, BGR as loaded; mmpretrain's default, 128, comes out blue.
            dict(type='AutoAugment', policies='imagenet', hparams=dict(pad_val=[104, 116, 124])),
            dict(type='PackInputs'),
        ],
    ),
)
