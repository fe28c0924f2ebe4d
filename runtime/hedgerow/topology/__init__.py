"""One description of a region, its sites and nodes, and all the files that follow from it."""
