"""Tests of the app, driven by its keys."""
