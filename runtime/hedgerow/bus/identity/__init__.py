"""Client ids: made so that nobody can guess them, and the move from those that could be guessed."""
