"""Stores messages from the region's broker, and acknowledges results to the nodes' outboxes."""
