"""Widgets without knowledge of runs: text that is drawn, and the base of every panel."""
