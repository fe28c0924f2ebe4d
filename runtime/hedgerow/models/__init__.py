"""From a model's line in the configuration to a slot that serves it to every pipeline."""
