"""What every server here stands on: settings, telemetry, a gRPC server's life, a SQLite file with its one thread.

It knows nothing of charges.
"""
