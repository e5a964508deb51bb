"""The hybrid trainer: phases, predictors and what judges them (torch)."""
