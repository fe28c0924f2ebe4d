"""Where models serve: slots, their engines, and the pool of a node."""
