"""The stories that `make run` and `make demo` tell, with the real servers as processes."""
