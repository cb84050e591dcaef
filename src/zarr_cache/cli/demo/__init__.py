"""``zarr-cache demo``: what the cache saves, seen on a real array."""
