"""What can be configured (`schema`), where values come from (`load`), and what can be read about them (`reference`)."""
