"""Settlement of frames: publishes or stores results, publishes dead letters, counts drops, and acknowledges."""
