"""How properties are tested: for truth, not for speed."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# how long an example takes says more of the machine's other work than of the code
settings.register_profile("bareku", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bareku")
