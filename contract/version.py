"""The version of the contract. docs/compatibility.md says what raises it; a test holds the two lines below together."""

VERSION = "1.1"
SHAPE = "d6b75bfdba9f87007dc8a3180e534ca1a55d274fc3cfe6d9ffb2999e8a9bf9c5"
"""The SHA-256 of every name, number and type in the contract, so that none of them changes without a new version."""
