"""What a figure was measured on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path


def processor() -> str:
    """Name and cores of the processor."""
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return f'{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores'


def machine(*packages: str) -> str:
    """Processor and the versions of ``packages``, in a line."""
    return f'{processor()}; {", ".join(f"{package} {version(package)}" for package in packages)}'
