"""Numbers of outboxes that the region has received, and those that are missing."""
