"""One step's updates: the objective, its gradients and the optimizer."""
