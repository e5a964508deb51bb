"""What the machine has: cards through NVML, host memory and CPU, whether a run fits, and the doctor. No torch."""
