"""What each command of the command line does. No torch, no textual."""
