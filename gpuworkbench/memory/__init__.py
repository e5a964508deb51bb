"""Memory strategies: one a file, each a class with `apply(model)`, and what precision a run computes in."""
