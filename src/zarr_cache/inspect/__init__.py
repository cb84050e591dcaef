"""Reports, checks and removes what is in a file, for people.

Imports ``backend`` and what is below it.
"""
