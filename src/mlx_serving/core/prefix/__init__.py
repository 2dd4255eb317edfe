"""What is kept of prompts that were computed: in memory, on disk, and who may use it."""
