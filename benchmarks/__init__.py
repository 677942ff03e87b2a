"""Figures, each beside its reference in the same run: `python -m benchmarks.NAME [arguments]`.

Every benchmark shows progress on standard error and prints one JSON object as its last line.
"""
