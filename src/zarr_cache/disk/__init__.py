"""Files as the file system has them: their names and locks, and the data file.

Imports ``core``.
"""
