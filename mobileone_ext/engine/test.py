"""What tools/test.py does: measure a checkpoint, loaded strictly into the network it needs, or an exported file."""

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook

from ..checkpoints.load import Weights
from ..config import building, require_data
from ..data.check import prepare_data
from ..deploy.compare import refuse_not_finite
from ..deploy.exported import ExportedClassifier
from ..recipe.run import unwrap
from .metrics import as_plain
from .runner import Runner


def evaluate(config: Config, weights: Weights, collect: Hook | None = None) -> dict[str, Any]:
    """Metrics of ``weights`` on the config's test set, whatever its evaluator returns, as plain data.

    With ``num_images``, and ``classes``, their names, if anything tells them.

    Args:
        config: as for training; its ``work_dir`` gets the log.
        collect: a hook that takes part, e.g. :class:`mobileone_ext.engine.collect.CollectHook`.

    Raises:
        ValueError: for missing data, weights of another network, or outputs that are NaN or infinite.
    """
    if weights.form:
        config.model.backbone.deploy = weights.form == 'fused'
    runner = _runner(config, weights.classes, collect)
    model = unwrap(runner.model)
    weights.load_into(model)
    score = model.head if hasattr(model, 'head') else model.model  # timm's and Hugging Face's are one network
    score.register_forward_hook(refuse_not_finite(weights.name))
    return _measure(runner, weights.classes)


def evaluate_file(config: Config, classifier: ExportedClassifier, collect: Hook | None = None) -> dict[str, Any]:
    """Metrics of an exported file as :func:`evaluate` gives them; with its reference, how far the two lie apart:
    ``changed_predictions``, ``max_abs_logit_diff`` and ``max_rel_logit_diff`` (of the image's largest).

    Raises:
        ValueError: for missing data, or images that the file does not take.
    """
    if config.get('launcher', 'none') != 'none':
        raise ValueError(f'--launcher {config.launcher}: an exported file is measured in one process')
    runner = _runner(config, classifier.classes, collect)
    runner.model = classifier
    metrics = _measure(runner, classifier.classes)
    if classifier.reference is not None:
        difference = classifier.difference
        metrics.update(
            changed_predictions=difference.changed_predictions,
            max_abs_logit_diff=difference.max_abs_diff,
            max_rel_logit_diff=difference.max_rel_diff,
        )
    return metrics


def _runner(config: Config, classes: Sequence[str] | None, collect: Hook | None) -> Runner:
    require_data(config, 'test_dataloader')
    prepare_data(config, 'test_dataloader', classes=classes)
    config.load_from, config.resume = None, False
    with building(config.filename or 'the config'):
        runner = Runner.from_cfg(config)
    runner._hooks = [hook for hook in runner.hooks if not isinstance(hook, EMAHook)]  # the weights are chosen already
    if collect:
        runner.register_hook(collect)
    return runner


def _measure(runner: Runner, classes: Sequence[str] | None) -> dict[str, Any]:
    metrics = as_plain(runner.test())
    dataset = runner.test_dataloader.dataset
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes') or classes
    return {**metrics, 'num_images': len(dataset), **({'classes': list(classes)} if classes else {})}
