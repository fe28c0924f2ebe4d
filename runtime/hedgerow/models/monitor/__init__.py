"""How a version behaves while it serves: drift, canary analysis, quarantine. Pure."""
