"""The process boundary, in full: framing, JSON-RPC, the methods, the notifications and the error table.

Nothing here does I/O. Both ends of the pipe import this package and nothing else of each other.
"""
