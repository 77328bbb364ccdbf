"""Measurements that decisions rest on, each a command that anyone can run."""

# For every channel: a web proxy in the environment must not carry calls between servers of this machine.
DIRECT = (("grpc.enable_http_proxy", 0),)
