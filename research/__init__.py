"""Studies of this project's own questions, each with its command and results: ``python -m research.unfuse --help``."""
