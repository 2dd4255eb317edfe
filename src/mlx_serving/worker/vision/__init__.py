"""Vision-language models: how images become key-value caches. mlx-vlm is imported when the first such model loads."""
