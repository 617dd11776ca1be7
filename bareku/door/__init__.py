"""The SSH door: keys, the forced command, the embedded server."""
