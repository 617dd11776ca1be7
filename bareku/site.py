"""Variables of the site that builds need: proxies, certificates, package mirrors. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SITE = re.compile(
    r"(?:https?|all|no)_proxy|(?:HTTPS?|ALL|NO)_PROXY|SSL_CERT_(?:FILE|DIR)|REQUESTS_CA_BUNDLE"
    r"|CURL_CA_BUNDLE|NODE_EXTRA_CA_CERTS|(?:PIP|UV)_\w+|(?:npm_config|NPM_CONFIG)_\w+"
    r"|GOPROXY|GONOSUMDB|GOFLAGS|COMPOSER_\w+|BUNDLE_MIRROR\w*"
)
# settings of the one who runs Bareku that would lead a build astray
_NOT_FOR_BUILDS = re.compile(
    r"UV_(?:PROJECT\w*|PYTHON\w*|CACHE_DIR|NO_CACHE|TOOL_\w+|RUN_\w+|WORKING_DIR\w*|SYSTEM_\w+)"
    r"|PIP_(?:TARGET|PREFIX|USER|CACHE_DIR|REQUIRE\w*|CONSTRAINT)|(?:npm_config|NPM_CONFIG)_(?:cache|prefix|userconfig)"
    r"|COMPOSER_(?:HOME|AUTH|CACHE_DIR)"
)


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Those of `environ` that a build may have; none of ours."""
    return {
        key: value
        for key, value in environ.items()
        if _SITE.fullmatch(key) and not _NOT_FOR_BUILDS.fullmatch(key)
    }
