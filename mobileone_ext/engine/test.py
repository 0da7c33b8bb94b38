"""What tools/test.py does: build the network that a checkpoint needs, load it strictly, measure it."""

from typing import Any

from mmengine.config import Config

from ..checkpoints.load import Weights, load_strict, load_weights
from ..checkpoints.plain import PlainWeights, load_plain, load_plain_strict
from ..data.check import check_data
from ..deploy.compare import refuse_not_finite
from ..recipe.wrapper import unwrap
from .metrics import as_plain
from .runner import Runner


def load_for(config: Config, checkpoint: str, ema: str = 'auto', trust: bool = False) -> Weights | PlainWeights:
    """The weights in ``checkpoint``: a MobileOne's in any layout and form, another network's as they are."""
    kind = str(config.model.get('backbone', {}).get('type', ''))
    load = load_weights if kind.split('.')[-1].removesuffix("'>") == 'MobileOne' else load_plain
    return load(checkpoint, ema, trust)


def evaluate(config: Config, weights: Weights | PlainWeights, name: str) -> dict[str, Any]:
    """Metrics of ``weights`` on the config's test set, whatever its evaluator returns, as plain data.

    With ``num_images``, and ``classes``, their names, if anything tells them.

    Args:
        config: as for training; its ``work_dir`` gets the log.
        name: of the checkpoint, for messages.

    Raises:
        ValueError: for missing data, weights of another network, or outputs that are NaN or infinite.
    """
    check_data(config, 'test_dataloader', classes=weights.classes)
    is_mobileone = isinstance(weights, Weights)
    if is_mobileone:
        config.model.backbone.deploy = weights.form == 'fused'
    config.load_from, config.resume = None, False
    config.custom_hooks = [hook for hook in config.get('custom_hooks', []) if hook['type'] != 'EMAHook']
    runner = Runner.from_cfg(config)
    model = unwrap(runner.model)
    (load_strict if is_mobileone else load_plain_strict)(model, weights, name)
    model.head.register_forward_hook(refuse_not_finite(name))
    metrics = as_plain(runner.test())
    dataset = runner.test_dataloader.dataset
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes') or weights.classes
    return {**metrics, 'num_images': len(dataset), **({'classes': list(classes)} if classes else {})}
