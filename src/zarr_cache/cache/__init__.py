"""CacheStore and SqliteStore, zarr's stores: reads and writes over a source.

Imports ``sources``, ``inspect`` and what is below them.
"""
