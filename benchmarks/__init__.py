"""Benchmarks: `make bench NAME=external_throughput`, a table on the screen and JSON in `results/`."""
