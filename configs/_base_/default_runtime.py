"""What every run shares: registered parts, hooks, logging, checkpoints."""

default_scope = 'mmpretrain'
custom_imports = dict(
    imports=[
        'mobileone_ext.backbone',
        'mobileone_ext.data.dataset',
        'mobileone_ext.data.transforms',
        'mobileone_ext.data.autoaugment',
        'mobileone_ext.recipe',
    ],
    allow_failed_imports=False,
)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mobileone_ext.CheckpointHook', interval=1, max_keep_ckpts=3, save_best='auto'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    seed_epoch=dict(type='mobileone_ext.SeedEpochHook'),
    plain_checkpoint=dict(type='mobileone_ext.PlainCheckpointHook'),
    stop_on_nan=dict(type='mobileone_ext.StopOnNanHook'),
    channels_last=dict(type='mobileone_ext.ChannelsLastHook'),
    weight_decay_log=dict(type='mobileone_ext.WeightDecayLogHook'),
    sync_statistics=dict(type='mobileone_ext.SyncStatisticsHook'),
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
visualizer = dict(
    type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
)
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=None, deterministic=False)
