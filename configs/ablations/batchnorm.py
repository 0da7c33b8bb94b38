"""Batch norm in training: its own statistics, all GPUs' (SyncBN), or frozen.

SyncBN needs --launcher pytorch; on one process it equals BN. norm_eval never
uses the batch's statistics, so it needs pre-trained weights (load_from) to be
more than a control. "frozen at the end" freezes them for the last fifth.
"""

title = 'Batch norm'
variants = {
    'BN': {},
    'SyncBN': {'model.backbone.norm_cfg': dict(type='SyncBN')},
    'norm_eval': {'model.backbone.norm_eval': True},
    'frozen at the end': {'custom_hooks.FreezeNormHook': dict(type='mobileone_ext.FreezeNormHook', epoch=0.8)},
}
