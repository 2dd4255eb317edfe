"""Which models there are and where they lie: references, aliases, converted GGUF files, the Hugging Face hub.

Shared by the control process and the worker: nothing here imports MLX, and everything blocks.
"""
