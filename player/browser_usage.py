"""What Chromium uses of the machine while a session plays."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

from player.process_tree import TreeMeter, find_process
from player.records import ProcessRecord

#: Often enough to see the peak of what lasts; a sample takes some milliseconds of a core.
SAMPLE_S = 2.0


class BrowserMeter:
    """Looks at a browser's processes from :meth:`start` to :meth:`stop`, or to :meth:`aclose`.

    Attributes:
        argument: that the browser is to be started with, by which it is found; it has no effect.
    """

    def __init__(self) -> None:
        self.argument = f"--testbed-session={secrets.token_hex(8)}"
        self._meter: TreeMeter | None = None
        self._stopped = asyncio.Event()
        self._sampling: asyncio.Task[None] | None = None

    async def aclose(self) -> None:
        """Looks no longer; for ``contextlib.aclosing``."""
        if self._sampling is not None:
            self._sampling.cancel()
            await asyncio.wait((self._sampling,))

    def start(self) -> None:
        """What is used counts from now on."""
        self._sampling = asyncio.create_task(self._sample())

    async def stop(self) -> ProcessRecord | None:
        """What was used; None where there was no such process."""
        if self._sampling is None:
            return None
        self._stopped.set()
        await self._sampling
        if self._meter is None:
            return None
        await asyncio.to_thread(self._meter.sample)
        return self._meter.record

    async def _sample(self) -> None:
        root_pid = await asyncio.to_thread(find_process, self.argument)
        if root_pid is None:
            return
        self._meter = await asyncio.to_thread(TreeMeter, root_pid)
        while not self._stopped.is_set():
            await asyncio.to_thread(self._meter.sample)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), SAMPLE_S)
