"""The parts of `core.scheduler`: who is let in, what a step is made of, what it costs."""
