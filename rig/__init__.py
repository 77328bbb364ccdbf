"""Shared by the tests, the proof, the benchmark and the demo: servers to start and end, a referee, a reader of errors.

    around      stands around a part of a server
    asking      a client's request of whatever kind, and what is told of it
    errors      a server's error, as its client reads it
    referee     the bank's side: faults to order, its calls, its movements
    processes   the three servers as processes, to be killed
    ports       addresses that stay a server's own while it is down
    servers     the three servers, in this process or as processes
    world       a bank and a command server in this process, and the books that must agree

It is not installed with the servers.
"""
