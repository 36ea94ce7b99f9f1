"""nGPT's steps on the unit sphere (Loshchilov et al. 2024, arXiv 2410.01131): in plain torch."""

from nlrl_kernels.hypersphere.reference import position_step, qk_step, residual_step, scaled_swiglu, unit

__all__ = ["position_step", "qk_step", "residual_step", "scaled_swiglu", "unit"]
