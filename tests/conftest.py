"""Before every test: servers of this machine are reached directly, whatever proxy the environment names for the web."""

import os

for name in [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")]:
    del os.environ[name]
