"""Natural-language reinforcement learning: the method, its engines and its command line.

Importing this package loads neither torch nor triton, vLLM or transformers.
"""

__version__ = "0.1.0"
