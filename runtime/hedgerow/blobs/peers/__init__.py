"""Exchange of model chunks between the nodes of a site."""
