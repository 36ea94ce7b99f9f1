"""Differential attention: one softmax map minus lambda times another, and the norm over each head behind it."""
