"""Typed, frozen configuration: presets, overrides and the resolved file a trainer reads. No torch."""
