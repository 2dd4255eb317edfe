"""Measuring servers and the engine under load.

A workload is sent to one or two targets; records of single requests become figures, and figures a report.
"""
