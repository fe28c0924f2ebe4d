"""Who nodes are, as stored: forgotten ones, and former addresses."""
