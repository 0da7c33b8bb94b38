"""What a figure was measured on."""

import os
import platform
from importlib.metadata import packages_distributions, version
from pathlib import Path


def processor() -> str:
    """Name and cores of the processor."""
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return f'{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores'


def machine(*packages: str) -> str:
    """Processor and the distributions, with versions, behind the import names ``packages``, in a line."""
    installed = packages_distributions()  # forks keep the import name and change the distribution's
    names = [installed[package][0] for package in packages]
    return f'{processor()}; {", ".join(f"{name} {version(name)}" for name in names)}'
