"""Ablation studies: named overrides of a config, run with several seeds and put in a table."""
