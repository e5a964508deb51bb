"""From a request to a trainer process: create, resume, fork, spawn, signal. No torch."""
