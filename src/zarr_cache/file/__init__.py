"""One cache file: whose it is, its schema, its connections, its loss, damage and forks.

Imports ``disk`` and ``core``.
"""
