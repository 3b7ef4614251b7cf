"""Benchmarks: ratios within one run, medians, with hardware and commit in the result file."""
