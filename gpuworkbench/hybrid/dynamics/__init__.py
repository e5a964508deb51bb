"""The dynamics model: how a training goes on, as learnt from this training while it runs."""
