"""MobileOne-S1 on ImageNet, the paper's recipe; all but the model as in mobileone_s0_8xb32.py.

    bash tools/dist_train.sh configs/mobileone_s1_8xb32.py 8

Expected top-1: 75.9 (paper, Table 9); 75.76 (Apple's weights, re-evaluated); CoreNet's
training by another recipe has 75.32. Not trained by this project yet.
"""

_base_ = [
    './_base_/models/mobileone_s1.py',
    './_base_/datasets/imagenet.py',
    './_base_/schedules/imagenet_300e.py',
    './_base_/default_runtime.py',
]
