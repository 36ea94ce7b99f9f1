"""Mamba-1's selective scan (Gu and Dao 2023, arXiv 2312.00752): whole sequences, packed rows, and one-token steps."""
