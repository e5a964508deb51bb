"""Where text comes from, as streams of documents, and what cleans them."""
