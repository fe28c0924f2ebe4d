"""The texts that rendered files are made of."""
