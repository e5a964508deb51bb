"""Run directories: their files, creation, lock, heartbeat, control, status, checkpoint manifests. No torch."""
