"""The configs that tools read: from a file or text, every name and number held against who reads it, overridden."""

from .keys import building, check_config, require_data, unknown_part
from .load import DATA_SUFFIXES, completed, find_file, load_config, resolved_config
from .override import override

__all__ = [
    'DATA_SUFFIXES',
    'building',
    'check_config',
    'completed',
    'find_file',
    'load_config',
    'override',
    'require_data',
    'resolved_config',
    'unknown_part',
]
