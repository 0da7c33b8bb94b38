"""What a figure was measured on."""

import platform
from importlib.metadata import version
from pathlib import Path


def machine(*packages: str) -> str:
    """Processor and the versions of ``packages``, in a line."""
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    cores = f', {len(names)} cores' if names else ''
    versions = ', '.join(f'{package} {version(package)}' for package in packages)
    return f'{names[0] if names else platform.processor()}{cores}; {versions}'
