"""What runs a network in a browser: two files of the npm package onnxruntime-web, downloaded once and checked."""

import io
import os
import shutil
import subprocess
import tarfile
from base64 import b64encode
from hashlib import sha512
from pathlib import Path

from filelock import FileLock

from ...checkpoints.download import cache_folder
from ...files import temporary_folder

PACKAGE, VERSION = 'onnxruntime-web', '1.30.0'
_SHA512 = 'q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=='
# By the names that they have beside a page: hosts know what *.js is. The smallest build, for the processor alone.
FILES = {
    'runtime.js': 'package/dist/ort.wasm.bundle.min.mjs',
    'runtime.wasm': 'package/dist/ort-wasm-simd-threaded.wasm',
}
_SECONDS = 300  # for 33 MB


def load() -> dict[str, bytes]:
    """The contents of ``FILES`` by their names here; the archive is kept in torch's hub cache.

    Raises:
        OSError: if it is not there and npm cannot bring it; the message says which file to put where.
        ValueError: for another file than the published one.
    """
    path = cache_folder() / f'{PACKAGE}-{VERSION}.tgz'
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f'.{path.name}.lock')):
        if not path.is_file():
            _download(path)
    content = path.read_bytes()
    if b64encode(sha512(content).digest()).decode() != _SHA512:
        raise ValueError(f'{path}: is not {PACKAGE} {VERSION} as published (sha512); remove it to download it again')
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {name: archive.extractfile(member).read() for name, member in FILES.items()}


def _download(path: Path) -> None:
    command = f'npm pack {PACKAGE}@{VERSION}'
    try:
        npm = shutil.which('npm')
        if npm is None:
            raise FileNotFoundError('npm is not installed')
        with temporary_folder(path) as folder:
            line = [npm, *command.split()[1:], '--fetch-retries=0', '--loglevel=error']
            subprocess.run(line, cwd=folder, check=True, capture_output=True, text=True, timeout=_SECONDS)
            os.replace(folder / path.name, path)
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(getattr(error, 'stderr', None) or error).splitlines()[0]
        raise OSError(
            f'{PACKAGE} {VERSION}, which runs a network in a browser, is not downloaded ({reason}); '
            f'put the file that "{command}" writes at {path}'
        ) from error
