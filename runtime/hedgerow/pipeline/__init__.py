"""The data path of a node: intake, lanes, built pipelines and settlement; the runner connects them."""
