"""The stages of a pipeline as a chain, with a circuit breaker for each."""
