"""Which source a store reads, as a name without secrets.

Imports ``core``.
"""
