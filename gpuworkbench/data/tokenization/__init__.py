"""Text to ids and back: trained here, published, or read from a tokenizer.json."""
