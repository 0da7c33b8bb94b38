"""MobileOne-S4; all else as in mobileone_s0.py."""

_base_ = './mobileone_s0.py'

model = dict(backbone=dict(arch='s4'), head=dict(in_channels=2048))
