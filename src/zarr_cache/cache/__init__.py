"""CacheStore and SqliteStore, zarr's stores, and what they report.

Imports ``flows``, ``inspect`` and what is below them.
"""
