"""The parts of the recipe, one by one and together. (arXiv 2206.04040, Table 8)

The paper's Table 8 is for s2 and adds progressive learning, annealed weight
decay (+0.5) and EMA in turn; here each stands alone beside "plain" as well as
all together. Sizes are fractions of the base config's own; AutoAugment is at full
strength from the start.
"""

_STAGES = [dict(epoch=0.0, size=5 / 7), dict(epoch=37 / 300, size=6 / 7), dict(epoch=112 / 300, size=1.0)]


def _pipeline(config, *augmentations):
    """The base config's training pipeline with these augmentations alone, beside its crop and flip."""
    *steps, pack = config.train_dataloader.dataset.pipeline
    return [*(step for step in steps if not step['type'].endswith('AutoAugment')), *augmentations, pack]


_PLAIN = {
    'custom_hooks': [],
    'param_scheduler.CosineAnnealingParamScheduler': None,
    'model.head.loss': dict(type='CrossEntropyLoss'),
    'train_dataloader.dataset.pipeline': _pipeline,
}
_CURRICULUM = {'custom_hooks.CurriculumHook': dict(type='mobileone_ext.CurriculumHook', stages=_STAGES)}
_ANNEALING = {
    'param_scheduler.CosineAnnealingParamScheduler': lambda config: dict(
        type='CosineAnnealingParamScheduler',
        param_name='weight_decay',
        eta_min_ratio=0.1,
        T_max=config.train_cfg.max_epochs,
        end=config.train_cfg.max_epochs,
        by_epoch=True,
    )
}
_EMA = {'custom_hooks.EMAHook': dict(type='EMAHook', momentum=5e-4, update_buffers=True, priority='ABOVE_NORMAL')}
_AUGMENTATION = {
    'train_dataloader.dataset.pipeline': lambda config: _pipeline(
        config, dict(type='mobileone_ext.AutoAugment', policies='imagenet')
    )
}
_SMOOTHING = {'model.head.loss': dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')}

title = 'The training recipe'
variants = {
    'plain': _PLAIN,
    '+ curriculum': {**_PLAIN, **_CURRICULUM},
    '+ annealed weight decay': {**_PLAIN, **_ANNEALING},
    '+ EMA': {**_PLAIN, **_EMA},
    '+ label smoothing': {**_PLAIN, **_SMOOTHING},
    '+ AutoAugment': {**_PLAIN, **_AUGMENTATION},
    'all': {**_PLAIN, **_CURRICULUM, **_ANNEALING, **_EMA, **_SMOOTHING, **_AUGMENTATION},
}
