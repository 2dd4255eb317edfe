"""Holding answers to a form: grammars compiled on their own thread, masks for each step."""
