"""The `chargeonce` command: clients, servers and operators each find theirs by its name."""
