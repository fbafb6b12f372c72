"""Training: the visible loop, the model folder it leaves, and diagnostics of what usually goes wrong."""
