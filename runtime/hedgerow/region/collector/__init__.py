"""From the region's broker into the store, and acknowledgements back."""
