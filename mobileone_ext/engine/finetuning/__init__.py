"""The parts of engine/finetune.py: photos, split, recipe, config, report."""
