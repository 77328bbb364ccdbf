"""The version of the contract. docs/compatibility.md says what raises it; a test holds the two lines below together."""

VERSION = "1.1"
SHAPE = "bcdd2dfecd9e1f0d30a7cf7dfe364eddf554829c535e97a8a805ac7652368ae9"
"""The SHA-256 of every name, number and type in the contract, so that none of them changes without a new version."""
