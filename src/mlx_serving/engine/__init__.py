"""The parent's side of the pipe: the supervised worker process, and the Backend layers above it."""
