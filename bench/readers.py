"""COUNT readers of the feed, which drop every record: python -m bench.readers FEED COUNT

Nothing is decoded, so that the readers cost little. `ready` is printed when all have caught up.
"""

import asyncio
import json
import sys

import grpc
import grpc.aio
import uvloop

from bench import DIRECT
from charging.v1.journal_pb2 import SubscribeRequest, SubscribeResponse

METHOD = "/charging.v1.JournalService/Subscribe"
READERS_A_CHANNEL = 25


async def main(feed: str, count: int) -> None:
    """Read until the process is ended."""
    options = [*DIRECT, ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(feed, options=options) for _ in range(-(-count // READERS_A_CHANNEL))]
    ready = [asyncio.Event() for _ in range(count)]

    async def read(number: int) -> None:
        follow = channels[number % len(channels)].unary_stream(METHOD, SubscribeRequest.SerializeToString, bytes)
        async for message in follow(SubscribeRequest()):
            if not ready[number].is_set() and SubscribeResponse.FromString(message).HasField("caught_up"):
                ready[number].set()

    reading = [asyncio.create_task(read(number)) for number in range(count)]
    await asyncio.gather(*(event.wait() for event in ready))
    print(json.dumps({"event": "ready"}), flush=True)
    await asyncio.gather(*reading)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
