"""Requests that a stopped server leaves to the next one."""
