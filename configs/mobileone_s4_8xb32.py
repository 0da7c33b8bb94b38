"""MobileOne-S4 on ImageNet, the paper's recipe; with AutoAugment, which grows with the images.

    bash tools/dist_train.sh configs/mobileone_s4_8xb32.py 8

Expected top-1: 79.4 (paper, Table 9); 79.30 (Apple's weights, re-evaluated). Not
trained by this project yet.
"""

_base_ = [
    './_base_/models/mobileone_s4.py',
    './_base_/datasets/imagenet_autoaugment.py',
    './_base_/schedules/imagenet_300e_strength.py',
    './_base_/default_runtime.py',
]
