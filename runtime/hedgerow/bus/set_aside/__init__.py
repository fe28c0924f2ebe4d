"""Messages over which the broker ends the link: set aside and kept for an operator."""
