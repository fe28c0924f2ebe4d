"""Pictures: decoding, resizing, gating, drawing."""
