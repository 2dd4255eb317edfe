"""Facts about the machine that both processes need; no MLX."""
