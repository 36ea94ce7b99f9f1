"""Differential Transformer: each head subtracts one attention map from another (Ye et al. 2024, arXiv 2410.05258).

Files: ``config`` (three variants in one configuration), ``heads`` (the layout of heads and the difference, shared by
both views), ``model`` (transformers), ``vllm_model`` (vLLM), ``weights`` and ``weights_diffllama`` (checkpoints).
Nothing is imported here, so that ``import nlrl_backbones`` stays light.
"""
