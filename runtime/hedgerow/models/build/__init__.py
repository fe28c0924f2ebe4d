"""Building a bundle from a model file: formats, samples, measurements, verification."""
