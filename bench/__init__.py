"""Measurements that decisions rest on, each a command that anyone can run."""

# For every channel: a proxy that the environment names for the web is none for servers of this machine.
DIRECT = (("grpc.enable_http_proxy", 0),)
