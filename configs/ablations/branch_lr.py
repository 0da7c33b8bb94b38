"""Does the best learning rate depend on the branches? Half and double the base config's."""


def _times(factor):
    return lambda config: config.optim_wrapper.optimizer.lr * factor


_LR = 'optim_wrapper.optimizer.lr'
_PLAIN = {
    'model.backbone.use_scale': False,
    'model.backbone.use_skip': False,
    'model.backbone.num_conv_branches': 1,
}
_ONE = {'model.backbone.num_conv_branches': 1}

title = 'The learning rate by branches'
variants = {
    'plain': _PLAIN,
    'plain, lr x 2': {**_PLAIN, _LR: _times(2)},
    'plain, lr / 2': {**_PLAIN, _LR: _times(0.5)},
    'k = 1': _ONE,
    'k = 1, lr x 2': {**_ONE, _LR: _times(2)},
    'k = 1, lr / 2': {**_ONE, _LR: _times(0.5)},
    'all branches': {},
    'all branches, lr x 2': {_LR: _times(2)},
    'all branches, lr / 2': {_LR: _times(0.5)},
}
