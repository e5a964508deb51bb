"""Subprocess entry points that need torch, so that the screen and the command line never import it."""
