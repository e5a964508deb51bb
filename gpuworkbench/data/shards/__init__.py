"""Tokens in files: shards, their answer masks, and published sets of them."""
