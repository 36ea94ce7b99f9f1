"""A tied head of vLLM's own models (Llama, Qwen and others) multiplies by the embedding's newest matrix on a CPU.

On a CPU vLLM 0.32 keeps a packed copy of each module's matrix. After a reload it renews the copies of the modules
whose names are loaded; a tied head has no name in checkpoints, so the new layers would run into the old head: wrong
answers, no error. Here a tied head asks its embedding for the product and keeps no copy, which also saves the memory of
one. On a GPU nothing is packed, and nothing is changed.
"""

from types import ModuleType
from typing import Any

_TIED_TO = "_nlrl_tied_to"


def let_tied_heads_follow(module: ModuleType) -> None:
    """Change ``vllm.model_executor.layers.vocab_parallel_embedding``, just imported, as said above; once a process."""
    method: Any = module.UnquantizedEmbeddingMethod
    if hasattr(method.tie_weights, _TIED_TO):
        return
    tie, process = method.tie_weights, method.process_weights_after_loading

    def tie_weights(self: Any, layer: Any, embed_tokens: Any) -> Any:
        head = tie(self, layer, embed_tokens)
        # In __dict__, else the embedding would become a submodule of the head.
        head.__dict__[_TIED_TO] = embed_tokens
        return head

    def process_weights_after_loading(self: Any, layer: Any) -> None:
        embedding = layer.__dict__.get(_TIED_TO)
        if embedding is None or not module.current_platform.is_cpu():
            process(self, layer)
            return
        # Looked up at each product: a reload replaces it.
        layer.cpu_linear = lambda x, weight, bias: embedding.cpu_linear(x, weight, bias)

    setattr(tie_weights, _TIED_TO, True)
    method.tie_weights, method.process_weights_after_loading = tie_weights, process_weights_after_loading
