"""The command server, but that Charge fails with the call's own metadata in its error: python -m tests.security.failing"""

import asyncio
from typing import Any

from command_service.api import CommandService
from command_service.cli import main
from command_service.parts import Parts
from command_service.reception import Reception


class _Failing(CommandService):
    async def Charge(self, request: Any, context: Any) -> Any:  # noqa: N802  # the contract's name
        held = dict(context.invocation_metadata())
        asyncio.get_running_loop().create_task(_fail_unheard(held))  # nobody is to await it
        await asyncio.sleep(0)
        raise RuntimeError(f"cannot go on with {held} for {request}")


async def _fail_unheard(held: Any) -> None:
    raise ValueError(f"nobody waits for {held}")


class _Parts(Parts):
    def commands(self, reception: Reception) -> CommandService:
        made = super().commands(reception)
        made.__class__ = _Failing
        return made


if __name__ == "__main__":
    main(make_parts=_Parts)
