"""Ten ImageNet classes in class folders, train/WNID and val/WNID, at 224 px: Imagenette or a part of it."""

_base_ = './crop_224.py'

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    pin_memory=True,
    dataset=dict(type='mobileone_ext.CustomDataset', data_root='data/imagenette2', data_prefix='train'),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    pin_memory=True,
    dataset=dict(type='mobileone_ext.CustomDataset', data_root='data/imagenette2', data_prefix='val'),
)
test_dataloader = val_dataloader
