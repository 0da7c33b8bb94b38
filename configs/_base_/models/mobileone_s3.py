"""MobileOne-S3; all else as in mobileone_s0.py."""

_base_ = './mobileone_s0.py'

model = dict(backbone=dict(arch='s3'), head=dict(in_channels=2048))
