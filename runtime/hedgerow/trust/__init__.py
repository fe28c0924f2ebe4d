"""Signed models by The Update Framework: owners and the region sign which model may serve where, nodes verify."""
