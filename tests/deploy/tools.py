"""What the tests of this folder need besides Python."""

import pytest

from rig.prometheus import are_required, lacking

needs_prometheus = pytest.mark.skipif(
    bool(lacking()) and not are_required(),
    reason=f"not here: {', '.join(lacking())} (make lacking; Debian: prometheus)",
)
"""Of a test that needs Prometheus' programs. Where they are required it fails without them."""
