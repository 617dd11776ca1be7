"""A page that says which release it is."""

import os

from flask import Flask

app = Flask(__name__)
MESSAGE = "Hello from Bareku"


@app.get("/")
def page() -> str:
    release = os.environ.get("BAREKU_RELEASE", "?")
    return f"<!doctype html><title>hello</title><h1>{MESSAGE}</h1><p>This is v{release}.</p>\n"
