"""The adapters, tried against fakes of Stripe that others wrote. `make test-banks` runs them: they need Go and Node."""
