"""The language-model head under vLLM, tied to the embedding or not."""

from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding


def language_head(
    embedding: VocabParallelEmbedding, vocabulary: int, width: int, *, tied: bool, prefix: str
) -> VocabParallelEmbedding:
    """What the logits processor multiplies by: the embedding itself where it is ``tied``, else a matrix of its own.

    vLLM's ``tie_weights`` makes a second module of the one matrix. On a CPU each module keeps a packed copy of its
    matrix, and a reload renews that of the module whose name is loaded: the head, which no file names, would go on with
    the old weights.
    """
    return embedding if tied else ParallelLMHead(vocabulary, width, prefix=prefix)
