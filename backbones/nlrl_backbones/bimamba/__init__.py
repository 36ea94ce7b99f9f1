"""Bi-Mamba: Mamba-2 whose projections are signs under column scales.

Light to import: the configuration alone needs neither torch nor vLLM.
"""
