"""The engine over simulated workers on simulated time: a history of events runs in milliseconds, the same each time.

The parent is the product's, shells included; so are the worker's scheduler, streams and handlers. Replaced are the
clock (`virtual_time`), the process and its pipe (`virtual_process`), the device (`virtual_model`) and what the worker
does with threads and files (`virtual_worker`).
"""
