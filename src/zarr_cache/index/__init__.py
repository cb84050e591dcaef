"""SQL on entries: every function takes a connection and is a transaction, or a step in one.

Imports ``file``, ``disk`` and ``core``.
"""
