"""What crosses MQTT: messages and the codec of frames."""
