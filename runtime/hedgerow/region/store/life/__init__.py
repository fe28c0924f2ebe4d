"""Identity of nodes: forgotten ones, and former addresses."""
