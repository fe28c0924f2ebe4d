"""Changes of a node's life that an operator requests: it is forgotten, admitted again, renamed, moved, replaced."""
