"""``python -m zarr_cache``: the command where its script is not on the path."""

from zarr_cache.cli import app

app(prog_name="zarr-cache")
