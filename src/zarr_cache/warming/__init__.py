"""Fetches chunks of arrays ahead, and shows which are cached.

Imports ``cache`` and what is below it.
"""
