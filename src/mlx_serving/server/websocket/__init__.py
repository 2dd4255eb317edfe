"""Chats over a WebSocket."""
