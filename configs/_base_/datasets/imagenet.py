"""ILSVRC-2012 at 224 px: random resized crop and flip; resize 256 and center crop to evaluate.

Expected below data_root: train/ and val/, each with class folders or with an
annotation file meta/train.txt, meta/val.txt of "file label" lines.
"""

_base_ = './crop_224.py'

train_dataloader = dict(
    num_workers=5,
    pin_memory=True,
    dataset=dict(type='ImageNet', data_root='data/imagenet', split='train'),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=5,
    pin_memory=True,
    dataset=dict(type='ImageNet', data_root='data/imagenet', split='val'),
)
test_dataloader = val_dataloader
