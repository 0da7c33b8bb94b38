"""How a MobileOne is trained: the registered hooks and constructors that configs name."""

from . import (  # noqa: F401
    autoaugment,
    checkpointing,
    compilation,
    curriculum,
    distillation,
    freeze_norm,
    layout,
    param_groups,
    schedule,
    seeding,
    sync_buffers,
)
