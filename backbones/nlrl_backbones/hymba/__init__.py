"""Hymba: attention heads and Mamba heads side by side in every layer (Dong et al. 2024, arXiv 2411.13676).

Files: ``config`` (official ``config.json``), ``model`` (transformers), ``weights`` (names in checkpoints), and the
vLLM view. Nothing is imported here, so that ``import nlrl_backbones`` stays light.
"""
