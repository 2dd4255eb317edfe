"""Vectors instead of text: which inputs share a pass, and in what order."""
