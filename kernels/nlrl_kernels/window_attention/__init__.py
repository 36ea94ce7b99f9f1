"""Attention over a paged cache with a sliding window and a few keys that are always visible."""
