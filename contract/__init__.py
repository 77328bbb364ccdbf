"""What the command server and the query server share beyond the generated contract in `charging`."""
