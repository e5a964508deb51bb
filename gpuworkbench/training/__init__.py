"""The trainer: `python -m gpuworkbench.training RUN_DIR`. Imports torch; never textual or plotext."""
