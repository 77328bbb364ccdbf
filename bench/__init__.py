"""Measurements that decisions rest on, each a command that anyone can run."""
