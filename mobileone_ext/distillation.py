"""Knowledge distillation: a student trained on the soft targets of a frozen teacher.

Hinton et al., arXiv 1503.02531. MobileOne's Table 10 uses MEAL V2 (arXiv
2009.08453): soft targets alone, of an ensemble, and a discriminator; here there
is one teacher and no discriminator.
"""

import torch
import torch.nn.functional as F
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS as CLASSIFIERS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from .checkpoints.load import load_weights
from .registry import MODELS


def soft_target_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """KL divergence of the student's ``logits`` from the teacher's ``targets`` (N, classes), both softened.

    Times ``temperature ** 2``, which keeps the gradient's size.
    """
    log_student = F.log_softmax(logits / temperature, dim=1)
    log_teacher = F.log_softmax(targets / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction='batchmean', log_target=True) * temperature**2


@MODELS.register_module()
class DistilledClassifier(ImageClassifier):
    """An ``ImageClassifier`` that a teacher helps to train; its checkpoints are the student's alone.

    The teacher is built when training initializes the weights, so testing and
    fusing need neither the teacher nor its file. It sees the student's images,
    normalized as its own ``data_preprocessor`` says.

    Args:
        teacher: the config of an mmpretrain classifier, ``TimmClassifier`` included.
        teacher_checkpoint: its weights; a MobileOne's may have any layout. None
            for a teacher with weights of its own (``pretrained``, timm's ``checkpoint_path``, ``init_cfg``).
        temperature: of the soft targets, above 0.
        soft_weight: 0 .. 1, the share of the soft targets in the loss; the rest is the head's own loss.

    Raises:
        ValueError: for a number out of range; in training for a teacher without weights, weights that don't fit it,
            or another number of classes.
    """

    def __init__(
        self,
        *args,
        teacher: dict,
        teacher_checkpoint: str | None = None,
        temperature: float = 1.0,
        soft_weight: float = 0.5,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if not (temperature > 0 and 0 <= soft_weight <= 1):
            raise ValueError(
                f'temperature={temperature}, soft_weight={soft_weight}: above 0 and in 0 .. 1 is what they must be'
            )
        self.teacher_config, self.teacher_checkpoint = teacher, teacher_checkpoint
        self.temperature, self.soft_weight = temperature, soft_weight
        self._teacher: list[nn.Module] = []  # in a list, it is no submodule: not trained, not averaged, not saved

    @property
    def teacher(self) -> nn.Module:
        """The network that ``init_weights`` built."""
        return self._teacher[0]

    def init_weights(self) -> None:
        super().init_weights()
        teacher = build_teacher(self.teacher_config, self.teacher_checkpoint)
        self._teacher = [teacher.to(next(self.parameters()).device)]

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        features = self.extract_feat(inputs)
        hard = self.head.loss(features, data_samples)
        logits = self.head(features)
        with torch.no_grad():
            targets = self.teacher(renormalize(inputs, self.data_preprocessor, self.teacher.data_preprocessor))
        if targets.shape != logits.shape:
            raise ValueError(f'the teacher tells {targets.shape[1]} classes apart, the student {logits.shape[1]}')
        losses = {name: value * (1 - self.soft_weight) if 'loss' in name else value for name, value in hard.items()}
        losses['soft_loss'] = self.soft_weight * soft_target_loss(logits, targets, self.temperature)
        return losses


def renormalize(images: Tensor, own: nn.Module, other: nn.Module) -> Tensor:
    """``images`` that the data preprocessor ``own`` normalized, as ``other`` would have, if that normalizes."""
    if not getattr(other, '_enable_normalize', False):
        return images
    return (images * own.std + own.mean - other.mean) / other.std


def build_teacher(config: dict, checkpoint: str | None) -> nn.Module:
    """The frozen classifier of ``config`` in eval mode, with the weights in ``checkpoint`` or its own.

    Raises:
        ValueError: if it has no weights, or those in ``checkpoint`` don't fit.
    """
    teacher = CLASSIFIERS.build(config)
    if checkpoint is None:
        if teacher.init_cfg:
            teacher.init_weights()
        # timm loaded these when it built the network; init_weights would overwrite them.
        elif not config.get('pretrained') and not config.get('checkpoint_path'):
            raise ValueError('the teacher has no weights: name a teacher_checkpoint')
    else:
        is_mobileone = str(config.get('backbone', {}).get('type')).endswith('MobileOne')
        load_weights(checkpoint, plain=not is_mobileone).load_into(teacher)
    return teacher.eval().requires_grad_(False)
