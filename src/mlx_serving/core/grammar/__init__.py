"""The forms that answers can be held to, as grammars."""
