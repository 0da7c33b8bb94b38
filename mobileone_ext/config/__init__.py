"""The configs that tools read: from a file or text, every name and number held against who reads it, overridden."""

from .keys import building, check_config, require_data, unknown_part
from .load import completed, find_file, load_config, resolved_config
from .override import override

__all__ = [
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
