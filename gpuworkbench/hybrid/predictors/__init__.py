"""Predictors of the weights' path, one a file; `gpuworkbench.registry.PREDICTORS` names them."""
