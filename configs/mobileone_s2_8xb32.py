"""MobileOne-S2 on ImageNet, the paper's recipe; with AutoAugment, which grows with the images.

    bash tools/dist_train.sh configs/mobileone_s2_8xb32.py 8

Expected top-1: 77.4 (paper, Table 9); 77.39 (Apple's weights, re-evaluated). Not
trained by this project yet.
"""

_base_ = [
    './_base_/models/mobileone_s2.py',
    './_base_/datasets/imagenet_autoaugment.py',
    './_base_/schedules/imagenet_300e_strength.py',
    './_base_/default_runtime.py',
]
