"""What the graphs in model files tell: files beside them, state inside, sizes that depend on values."""
