"""What models write, taken apart: text, reasoning, calls of tools."""
