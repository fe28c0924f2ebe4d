"""Where a frame ends: results published or stored, dead letters, drops; then acknowledged."""
