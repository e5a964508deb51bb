"""From events to the one frozen `RunState` that every screen and the headless renderer show. No torch."""
