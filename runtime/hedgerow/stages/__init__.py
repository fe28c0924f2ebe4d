"""The stages that come with the runtime: `parse` and `infer`."""
