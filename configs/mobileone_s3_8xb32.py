"""MobileOne-S3 on ImageNet, the paper's recipe; all but the model as in mobileone_s0_8xb32.py.

    bash tools/dist_train.sh configs/mobileone_s3_8xb32.py 8

Expected top-1: 78.1 (paper, Table 9); 77.93 (Apple's weights, re-evaluated). Not
trained by this project yet.

AutoAugment and a strength that grows with the image size are the paper's for s2 and
above; the strengths 0.3, 0.7, 1.0 and the sizes are mmpretrain's, and what strength
does to AutoAugment is ours (mobileone_ext.recipe.pipeline.at_strength).
"""

_base_ = [
    './_base_/models/mobileone_s3.py',
    './_base_/datasets/imagenet_autoaugment.py',
    './_base_/schedules/imagenet_300e.py',
    './_base_/default_runtime.py',
]

custom_hooks = [
    dict(type='EMAHook', momentum=5e-4, update_buffers=True, priority='ABOVE_NORMAL'),
    dict(
        type='mobileone_ext.CurriculumHook',
        stages=[
            dict(epoch=0.0, size=160, strength=0.3),
            dict(epoch=37 / 300, size=192, strength=0.7),
            dict(epoch=112 / 300, size=224, strength=1.0),
        ],
    ),
]
