"""The workers of a loader."""

from typing import Any


def end_workers(loader: Any) -> None:
    """End the workers that a ``DataLoader`` keeps, if it does; the next pass starts new ones.

    Garbage collection would wait 5 s for each (torch 2.14): it closes the queues first through which they hear of it.
    """
    iterator = getattr(loader, '_iterator', None)
    if iterator is not None:
        if hasattr(iterator, '_shutdown_workers'):
            iterator._shutdown_workers()
        loader._iterator = None
