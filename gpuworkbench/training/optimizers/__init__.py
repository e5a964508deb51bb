"""One optimizer a file. Each `build` gets the parameters by role and returns a torch.optim.Optimizer."""
