"""How a MobileOne is trained: the registered hooks and constructors that configs name."""

from . import checkpointing, layout, param_groups, seeding, sync_buffers  # noqa: F401
