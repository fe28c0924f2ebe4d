"""The region's service and its fleet."""
