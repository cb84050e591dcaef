"""What a CacheStore does at each call, as flows: reads, writes and evictions of one view.

Imports ``sources``, ``backend`` and what is below them.
"""
