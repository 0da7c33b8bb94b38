"""MobileOne-S0 on ImageNet, distilled from MobileOne-S4; all else as in mobileone_s0_8xb32.py.

    python tools/train.py configs/mobileone_s0_distilled_8xb32.py --auto-scale-lr \\
        --cfg-options model.teacher_checkpoint=mobileone_s4.pth

The paper distils with MEAL V2 (Table 10: s0 72.5 instead of 71.4). Here the soft
targets of one teacher stand alone, as there, without its discriminator. Not
trained by this project yet. Any classifier can teach, for example in a config that is based on this one

    model = dict(
        teacher=dict(_delete_=True, type='TimmClassifier', model_name='resnet50', pretrained=True),
        teacher_checkpoint=None,
    )
"""

_base_ = './mobileone_s0_8xb32.py'

model = dict(
    type='mobileone_ext.DistilledClassifier',
    teacher=dict(
        type='ImageClassifier',
        backbone=dict(type='mobileone_ext.MobileOne', arch='s4'),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=1000, in_channels=2048),
    ),
    teacher_checkpoint='checkpoints/mobileone_s4.pth',
    soft_weight=1.0,
    temperature=1.0,
)
