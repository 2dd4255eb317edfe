"""Pictures: what is taken, from where, and how messages hold them."""
