"""Torch-free specs of the model families: config keys, parameter counts, byte formulas."""
