"""Time, sizes, spans, checksums, errors, and running code on both surfaces.

Knows neither SQLite nor keys of a store. Imports nothing else of the package.
"""
