"""The clients of every language at real servers: their tours, their own tests and their quick starts (`make test-clients`)."""
