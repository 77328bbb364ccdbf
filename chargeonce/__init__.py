"""The `chargeonce` command: every server and every operator's command by its name."""
