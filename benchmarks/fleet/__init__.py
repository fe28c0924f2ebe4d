"""What a region and many nodes cost."""
