"""A terminal workbench for training language models on one consumer NVIDIA card."""

__version__ = "0.1.0"
