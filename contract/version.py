"""The version of the contract. docs/compatibility.md says what raises it; a test holds the two lines below together."""

VERSION = "1.1"
SHAPE = "f65f9a2d37d9822890648ccc74a41afbabf752b61cb2ebaf2aef95ccf213c392"
"""The SHA-256 of every name, number and type in the contract, so that none of them changes without a new version."""
