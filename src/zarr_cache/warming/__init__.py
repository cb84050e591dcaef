"""Chunks of arrays: what to fetch ahead, what is cached, drawn as a map.

Imports ``cache`` and what is below it.
"""
