"""nGPT: a Transformer whose hidden states and weights stay on the unit sphere (Loshchilov et al. 2024, 2410.01131).

Files: ``config`` (the published ``model_args``), ``model`` (transformers), ``train`` (the normalisation after every
optimizer step), ``weights`` (names in checkpoints), and the vLLM view. Nothing is imported here, so that
``import nlrl_backbones`` stays light.
"""
