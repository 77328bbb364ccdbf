"""The version of the contract. docs/compatibility.md says what raises it; a test holds the two lines below together."""

VERSION = "1.1"
SHAPE = "99d7188be320d6cc38fc2c11df122b5eb2f99db71cb9986d639886c1289d6382"
"""The SHA-256 of every name, number and type in the contract, so that none of them changes without a new version."""
