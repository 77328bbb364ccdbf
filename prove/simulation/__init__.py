"""Simulated stories: the product's own code on a virtual clock, with simulated disks, banks, networks and deaths."""
