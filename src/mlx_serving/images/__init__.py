"""Pictures: getting them, and bringing them into the one form that workers take. `core` says what is allowed."""
