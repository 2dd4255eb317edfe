"""Drafting tokens: by whom, how many, and when it does not pay."""
