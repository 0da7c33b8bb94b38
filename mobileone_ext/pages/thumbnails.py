"""Photos as small pictures inside a page."""

import io
import os
from base64 import b64encode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import ImageOps

from ..data.decode import read_rgb
from ..text import with_progress

SIDE, QUALITY = 128, 70  # pixels of the longer edge; of JPEG. 5,000 of these are about 24 MB in a page


def thumbnails(paths: Sequence[str]) -> list[str]:
    """Each photo as JPEG in base64, upright and whole; ``''`` for one that is gone or no longer a photo."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(with_progress(pool.map(_thumbnail, paths), 'drawing photos', len(paths)))


def _thumbnail(path: str) -> str:
    try:
        photo = ImageOps.contain(read_rgb(path, SIDE), (SIDE, SIDE))
    except (OSError, ValueError):
        return ''
    file = io.BytesIO()
    photo.save(file, 'jpeg', quality=QUALITY, optimize=True)
    return b64encode(file.getvalue()).decode()
