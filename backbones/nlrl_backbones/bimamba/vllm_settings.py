"""What vLLM settles before it builds a Bi-Mamba engine; ``vllm_plugin`` puts it where vLLM looks by architecture.

vLLM does this by itself for hybrids and for the pure Mamba models of its own tree, not for pure ones of others.
"""

from vllm.config import VllmConfig
from vllm.model_executor.models.config import MambaModelConfig

from nlrl_backbones.common.vllm_compat import own_config

from .config import BiMambaConfig


class BiMambaSettings(MambaModelConfig):
    """Block sizes and cache mode as for Mamba-2, states in float32, and what cannot be combined refused."""

    @classmethod
    def verify_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Settle the cache and refuse in one sentence what this model does not do.

        Raises:
            ValueError: a number of devices that does not divide the heads, pipeline stages, or LoRA with several
                devices.
        """
        config, parallel = own_config(vllm_config, BiMambaConfig), vllm_config.parallel_config
        ranks = parallel.tensor_parallel_size
        if config.num_heads % ranks:
            raise ValueError(
                f"Bi-Mamba: {config.num_heads} heads cannot be split over {ranks} devices: "
                "choose a tensor_parallel_size that divides them."
            )
        if parallel.pipeline_parallel_size > 1:
            raise ValueError("Bi-Mamba is not split over pipeline stages: use tensor_parallel_size instead.")
        if vllm_config.lora_config is not None and ranks > 1:
            raise ValueError(
                "Bi-Mamba serves LoRA on one device only, for vLLM would split in_proj's adapter at the wrong rows: "
                "use data parallelism, or merge the adapter."
            )
        super().verify_and_update_config(vllm_config)
        # Rounding the state at every step drifts; the official code keeps it in float32 too.
        if vllm_config.cache_config.mamba_ssm_cache_dtype == "auto":
            vllm_config.cache_config.mamba_ssm_cache_dtype = "float32"
