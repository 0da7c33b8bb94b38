"""One file from the network into a cache: whole or not at all, once, and checked.

Not ``torch.hub.download_url_to_file``: it takes a connection that broke off for the
end of the file, waits for ever, and has every process download its own copy.
"""

import shutil
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from filelock import FileLock

from .. import __version__
from ..files import write_atomically
from ..provenance import sha256
from ..text import with_progress

TIMEOUT = 30  # seconds without an answer or a byte
CHUNK = 1 << 18  # bytes


def cache_folder() -> Path:
    """Where downloads are kept: that of ``torch.hub``, which ``TORCH_HOME`` moves."""
    return Path(torch.hub.get_dir(), 'checkpoints')


def fetch(name: str, url: str, path: Path, digits: str = '') -> Path:
    """``path``, downloaded from ``url`` unless it is there.

    Processes that ask at once wait for the first one's download.

    Args:
        name: for messages.
        digits: the first ones of the file's sha256; a file that is there already is held against them too.

    Raises:
        OSError: if it cannot be downloaded or written; nothing is left behind.
        ValueError: if it has another sha256.
    """
    if path.is_file():
        _check_digits(path, path, digits, 'remove it to download it again')
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f'.{path.name}.lock')):
            if not path.is_file():
                _download(name, url, path, digits)
    except (OSError, HTTPException, UnicodeError) as error:
        raise OSError(_advice(name, url, path, _reason(error))) from error
    return path


def fetch_from_hub(name: str, repo: str, file: str, path: Path, url: str) -> Path | None:
    """``file`` of ``repo`` in the cache of huggingface_hub, downloaded unless it is there; None without that package.

    Args:
        name, path, url: for messages: where to get the file, and where to put it if there is no network.

    Raises:
        OSError: if it cannot be downloaded.
        ValueError: if it has another sha256 than the hub says.
    """
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        return None
    try:
        try:
            cached = hf_hub_download(repo, file, local_files_only=True)
        except LocalEntryNotFoundError:
            get_hf_file_metadata(hf_hub_url(repo, file), timeout=TIMEOUT)  # without network it fails at once
            cached = hf_hub_download(repo, file)
    except Exception as error:  # a library over a network: its own, its HTTP client's and the system's errors
        lines = str(error).strip().splitlines()
        raise OSError(_advice(name, url, path, lines[0] if lines else type(error).__name__)) from error
    # The cache names a large file by its sha256, which the library itself does not check.
    stored = Path(cached).resolve()
    if len(stored.name) == 64:
        _check_digits(name, stored, stored.name, f'remove {stored} to download it again')
    return Path(cached)


def _download(name: str, url: str, path: Path, digits: str) -> None:
    request = Request(url, headers={'User-Agent': f'mobileone_ext/{__version__}'})
    with urlopen(request, timeout=TIMEOUT) as answer, write_atomically(path) as part:
        size = int(answer.headers.get('Content-Length') or 0)
        free = shutil.disk_usage(path.parent).free
        if size > free:
            raise OSError(f'{size:,} bytes needed in {path.parent}, {free:,} are free')
        if answer.headers.get_content_type() == 'text/html':
            raise OSError('the answer is a page, not a file')
        with open(part, 'wb') as file:
            chunks = iter(partial(answer.read, CHUNK), b'')
            for chunk in with_progress(chunks, f'downloading {path.name}', size // CHUNK or None):
                file.write(chunk)
        received = part.stat().st_size
        if not received or received < size:
            raise OSError(f'the connection ended after {received:,} bytes' + (f' of {size:,}' if size else ''))
        _check_digits(name, part, digits, f'not kept; it came from {url}')


def _check_digits(name: str | Path, path: Path, digits: str, remedy: str) -> None:
    actual = sha256(path) if digits else ''
    if not actual.startswith(digits):
        raise ValueError(f'{name}: sha256 is {actual[: len(digits)]}, the published file has {digits}; {remedy}')


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f'HTTP {error.code} {error.reason}'
    if isinstance(error, TimeoutError) or isinstance(getattr(error, 'reason', None), TimeoutError):
        return f'no answer within {TIMEOUT} s'
    reason = getattr(error, 'reason', error)  # urllib wraps what the system said
    return getattr(reason, 'strerror', None) or str(reason) or type(error).__name__


def _advice(name: str, url: str, path: Path, reason: str) -> str:
    source = '' if name == url else f' from {url}'
    return f'{name}: not downloaded{source} ({reason}); put the file at {path}, or set TORCH_HOME to another cache'
