"""A person's photos at 224 px, listed in annotation files of ``path class-number`` lines.

A config that stands on this one names the folder (``data_root``), the lists (``ann_file``) and the
classes (``metainfo``); tools/finetune.py writes such a config.
"""

_base_ = './crop_224.py'

train_dataloader = dict(
    dataset=dict(
        type='CustomDataset',
        pipeline=[
            dict(type='mobileone_ext.LoadImageFromFile', lazy=True),
            dict(type='mobileone_ext.RandomResizedCrop', scale=224, crop_ratio_range=(0.35, 1.0), backend='pillow'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(dataset=dict(type='CustomDataset'))
test_dataloader = val_dataloader
