"""Chunks of arrays: fetching them ahead, and which of them are cached, as an array or a map.

Imports ``cache`` and what is below it.
"""
