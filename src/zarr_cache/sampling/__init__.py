"""Samples of reads, and what they show: hit rate over size, and the better order of eviction."""
