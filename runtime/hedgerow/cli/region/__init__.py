"""`hedgerow region`, `nodes`, `node`, `rollout`, `results` and `audit`: run a region's service, query its store, manage its fleet."""
