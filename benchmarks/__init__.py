"""Scripts that measure, each run as `python -m benchmarks.NAME`; results with versions and hardware in results/."""
