"""The judge: what a history must keep, and whether an observed one kept it."""
