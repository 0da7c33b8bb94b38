"""MobileOne-S0 on ImageNet, the paper's recipe: 8 GPUs x 32 images, 300 epochs.

    bash tools/dist_train.sh configs/mobileone_s0_8xb32.py 8
    python tools/train.py configs/mobileone_s0_8xb32.py --auto-scale-lr    # one GPU

Expected top-1: 71.4 (paper, Table 9); 71.36 (Apple's weights, re-evaluated); an
independent training has 70.5. Not trained by this project yet.
"""

_base_ = [
    './_base_/models/mobileone_s0.py',
    './_base_/datasets/imagenet.py',
    './_base_/schedules/imagenet_300e.py',
    './_base_/default_runtime.py',
]
