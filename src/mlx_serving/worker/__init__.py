"""The child process: the only package that imports MLX, mlx-lm and transformers.

`__main__` claims the pipe and starts `loop`, whose one thread touches MLX from import to exit. Two threads own the
pipe, one tokenizes; they hold no arrays.
"""
