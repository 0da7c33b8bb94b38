"""What does an activation cost, and what does it bring? (arXiv 2206.04040, Table 2)

The paper measures latency alone, of a plain 30-layer network on an iPhone 12:
ReLU 1.53 ms, GELU 1.63, SE-ReLU 2.10, SiLU 2.54. It gives no accuracy; the
latency here is the fused network's on this machine.
"""

title = 'Activations'
variants = {
    'ReLU': {},
    'GELU': {'model.backbone.act_cfg': dict(type='GELU')},
    'SiLU': {'model.backbone.act_cfg': dict(type='SiLU', inplace=True)},
    'SE-ReLU': {'model.backbone.se_cfg': dict(ratio=16, every_block=True)},
}
