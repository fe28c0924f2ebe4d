"""From a model's file to a bundle: formats, samples, evidence, verification."""
