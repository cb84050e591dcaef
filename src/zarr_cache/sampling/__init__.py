"""What a cache of another size or order of eviction would serve, from a sample of the reads."""
