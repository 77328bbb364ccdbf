"""The machinery that tries to break the promise: never twice, never lost, never unsure without saying so.

`make prove` runs all of it and prints one table. Each harness tries one family of faults against the product's own code and
hands what it saw to the one history checker; each has canaries or controls that must fail, since a harness that finds no
planted bug proves nothing.
"""
