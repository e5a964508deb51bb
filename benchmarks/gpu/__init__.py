"""The parts of benchmarks.gpu_check: what a first hour on a real card should show, in under ten minutes."""
