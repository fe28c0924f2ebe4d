"""MQTT messages, and the codec of frames."""
