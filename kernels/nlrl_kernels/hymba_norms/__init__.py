"""Hymba's norms around the scan: three of its small inputs at once, and the mean of its two normed branches."""
