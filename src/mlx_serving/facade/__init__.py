"""The engine as programs embed it: names, parameters, chunks, statistics and events that the ancestor's users know.

It stands above `assembly`, because `Engine()` builds its own stack.
"""
