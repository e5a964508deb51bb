"""A run without a screen: progress and notable events as lines, the log itself as JSON, a summary. No torch."""
