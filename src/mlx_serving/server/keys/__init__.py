"""API keys: who they are for, and what they may use."""
