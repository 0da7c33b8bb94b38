"""How a MobileOne is trained: the registered hooks and constructors that configs name."""

from . import (  # noqa: F401
    channels_last,
    checkpointing,
    compile,
    curriculum,
    distillation,
    finite,
    freeze_norm,
    param_groups,
    schedule,
    seeding,
    sync_buffers,
)
