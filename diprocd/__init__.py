"""diprocd: the distributed process control daemon. Knows nothing of git, slugs builds or HTTP."""
