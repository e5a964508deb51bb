"""What advises the hybrid trainer, each piece between its arithmetic (one level up) and the trainer's questions."""
