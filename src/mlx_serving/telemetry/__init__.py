"""What happened, seen from outside: events and logs."""
