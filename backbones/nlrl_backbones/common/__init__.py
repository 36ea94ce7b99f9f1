"""Pieces shared by two or more backbones."""
