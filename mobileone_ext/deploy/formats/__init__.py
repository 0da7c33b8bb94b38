"""Files for devices: one module a format, with ``write`` and ``open_file``; the table of them is in ``base``."""
