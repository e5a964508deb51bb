"""Model folders as Hugging Face writes them: config.json beside safetensors, read at a start, written at an export.

Torch-free: configs, names, shapes and headers. What moves tensors is in training/pretrained.py and tools/export.py.
"""
