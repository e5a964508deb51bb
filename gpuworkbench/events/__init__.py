"""The event log: one JSON object a line, append-only, written by the trainer and read by everyone. No torch."""
