"""From a push to a release, on the repository node."""
