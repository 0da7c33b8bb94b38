"""How a MobileOne is trained: the registered hooks, constructors and initializers that configs name."""

from . import (  # noqa: F401
    branch_norms,
    channels_last,
    checkpointing,
    compile,
    curriculum,
    finite,
    freeze_norm,
    param_groups,
    schedule,
    seeding,
    sync_buffers,
)
