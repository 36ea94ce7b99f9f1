"""Large shapes with random weights served by vLLM, each in a process of its own: ``nlrl bench serve``."""
