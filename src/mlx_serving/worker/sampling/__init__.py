"""Choosing tokens: one vectorised function over the rows of a batch."""
