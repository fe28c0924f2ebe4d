"""Taking models through the fleet: requests in, desired documents out."""
