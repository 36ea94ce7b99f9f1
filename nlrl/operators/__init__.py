"""Improvement operators, one a file."""
