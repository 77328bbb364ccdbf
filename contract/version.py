"""The version of the contract. docs/compatibility.md says what raises it; a test holds the two lines below together."""

VERSION = "1.0"
SHAPE = "0f3e63de3332a9f7d6142a00615a69fee14fbc5b7641adfaf2ecb5a9102853cf"
"""The SHA-256 of every name, number and type in the contract, so that none of them changes without a new version."""
