"""Two more that branches could suffer from: batch norm's running statistics, and weight decay of many kernels."""

title = 'Batch norm momentum and weight decay of many branches'
variants = {
    'all branches': {},
    'momentum 0.03': {'model.backbone.norm_cfg': dict(type='BN', momentum=0.03)},
    'no weight decay': {'optim_wrapper.optimizer.weight_decay': 0.0},
}
