"""``zarr-cache demo``: what a cache saves, measured with a real array."""
