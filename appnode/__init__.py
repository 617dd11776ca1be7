"""The app node: slug store, connector, handlers. Knows nothing of git or placement."""
