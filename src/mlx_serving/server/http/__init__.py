"""What is common to every route: connections, bodies, events, errors, the access log."""
