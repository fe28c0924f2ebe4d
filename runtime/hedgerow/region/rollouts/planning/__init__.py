"""What a rollout does next. Pure: no clock, no store, no broker."""
