"""Deaths of real processes: killed at random, at each port call, at each system call, and by power cuts."""
