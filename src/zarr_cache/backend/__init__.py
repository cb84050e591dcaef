"""The cached values in a cache file or in another store: lookups, write-behind, failures.

Imports ``index`` and what is below it.
"""
