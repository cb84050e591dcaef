"""What a process keeps over one cache file or another store: lookups, write-behind, failures.

Imports ``index`` and what is below it.
"""
