"""Built-in stages: `parse` and `infer`."""
