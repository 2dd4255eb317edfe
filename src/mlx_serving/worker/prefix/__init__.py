"""Kept beginnings of prompts, with arrays: in memory, on disk."""
