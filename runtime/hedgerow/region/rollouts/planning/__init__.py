"""Plans a rollout's next step. Pure: no clock, store or broker."""
