"""Where a file or a figure comes from: digests, versions, the machine, the process among others."""

import hashlib
import os
import platform
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

from . import __version__

# Where a launcher tells a process its number.
RANKS = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}

# Linux's names of the vector instructions that a figure depends on.
VECTORS = {'AVX2': {'avx2'}, 'AVX-512': {'avx512f'}, 'VNNI': {'avx512_vnni', 'avx_vnni'}}


def rank() -> int:
    """The number of this process among those that a launcher started; known before they meet."""
    return int(next((os.environ[name] for name in RANKS.values() if name in os.environ), '0'))


def processor() -> str:
    """Name, vector instructions and cores of the processor: ``'AMD EPYC (AVX2, AVX-512, VNNI), 2 cores'``.

    Clouds name processors of several generations alike; how fast int8 and float32 are depends on these instructions.
    """
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text(encoding='utf-8').splitlines() if cpuinfo.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(':') for line in lines)}
    name = facts.get('model name') or platform.processor() or platform.machine()
    flags = set(facts.get('flags', '').split())
    vectors = ', '.join(text for text, names in VECTORS.items() if flags & names)
    return f'{name} ({vectors}), {os.cpu_count()} cores' if vectors else f'{name}, {os.cpu_count()} cores'


def device() -> str:
    """The GPU, or else the processor."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()


_distributions = cache(packages_distributions)  # reads the files of all that is installed, for a second or more


def versions(*packages: str) -> dict[str, str]:
    """Distribution -> version, for import names."""
    installed = _distributions()  # forks keep the import name and change the distribution's
    names = [installed[package][0] for package in packages]
    return {name: version(name) for name in names}


def machine(*packages: str) -> str:
    """Processor and the distributions, with versions, behind the import names ``packages``, in a line."""
    return f'{processor()}; {", ".join(f"{name} {number}" for name, number in versions(*packages).items())}'


def sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def origin(source: str | Path, *packages: str) -> dict:
    """For a file made of ``source``: its name and sha256, and the versions that made it, ours among them."""
    return dict(
        source=Path(source).name,
        source_sha256=sha256(source),
        versions={'mobileone_ext': __version__, **versions(*packages)},
    )
