"""MobileOne (arXiv 2206.04040) for mmpretrain: train, study, fuse and deploy.

Nothing heavy is imported here: ``import mobileone_ext.reparam`` needs torch
alone. Configs load the registered parts by ``custom_imports``.
"""

__version__ = '0.1.0'
