"""The pages: a module for each, and what they share in `parts`."""
