"""The HTTP frontend: HTTP in, Mongrel2-style ZeroMQ out. Knows nothing of git or processes."""
