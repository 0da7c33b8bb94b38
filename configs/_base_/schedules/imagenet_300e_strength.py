"""imagenet_300e.py with an augmentation that grows with the image size, for s2, s3 and s4.

AutoAugment and the growing strength are the paper's; the strengths 0.3, 0.7, 1.0 are
mmpretrain's, and what strength does to AutoAugment is ours
(mobileone_ext.recipe.strength.at_strength).
"""

_base_ = './imagenet_300e.py'

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
