"""`hedgerow model` and `tune`: build, check, measure and publish models."""
