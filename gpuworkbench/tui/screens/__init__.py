"""What fills the terminal: one file a screen, which owns layout and keys."""
