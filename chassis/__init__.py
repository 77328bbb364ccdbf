"""The common base of all servers here: settings, telemetry, the life of a process and of a gRPC server, a SQLite file with
its one thread.

It knows nothing of charges.
"""

import os

# uvloop forks to run another program. grpc's own handlers of a fork start threads in the child, which now and then dies of them
# before it is that program: of a sandbox 18 of 92 times. grpc reads this once, when it is imported: grpc/grpc#41433 on GitHub.
os.putenv("GRPC_ENABLE_FORK_SUPPORT", "0")
