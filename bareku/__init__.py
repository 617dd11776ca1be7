"""Bareku, a git-push private PaaS. The modules here are its vocabulary; they do no deploying."""

__version__ = "0.1.0"
