"""Two more that branches could suffer from: batch norm's running statistics, and weight decay on many small weights."""

title = 'Batch norm momentum and weight decay of many branches'
variants = {
    'all branches': {},
    'momentum 0.03': {'model.backbone.norm_cfg': dict(type='BN', momentum=0.03)},
    'no decay of norms': {'optim_wrapper.paramwise_cfg': dict(norm_decay_mult=0.0)},
}
