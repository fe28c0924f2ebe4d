"""Ways to carry MQTT other than a plain or TLS connection."""
