"""The version of the contract. docs/compatibility.md says what raises it; a test holds the two lines below together."""

VERSION = "1.1"
SHAPE = "c0c04d8e76f60093d7e7f40c390191deaa5efca5292d7237770659861909921e"
"""The SHA-256 of every name, number and type in the contract, so that none of them changes without a new version."""
