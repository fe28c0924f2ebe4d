"""`hedgerow trust`: signed repositories of models."""
