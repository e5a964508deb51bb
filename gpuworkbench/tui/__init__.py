"""The app: pick a preset, launch, watch, resume. Reads the run directory and NVML; never imports torch."""
