"""The region's service: collects what comes up from the sites, acknowledges it, keeps it, and says how the sites are."""
