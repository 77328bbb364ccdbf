"""The common base of all servers here: settings, telemetry, the life of a process and of a gRPC server, a SQLite file with
its one thread.

It knows nothing of charges.
"""
