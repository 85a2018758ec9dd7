"""What happens to a task, told to its history in the state."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from downloader.errors import DownloaderError, TaskNotReady
from state import AsyncStore, Phase, RecordMissing, StateError, StateStore, Task

__all__ = ["History"]


class History:
    """The history of one task, and the phase that it is in."""

    def __init__(self, task: Task, *, store: AsyncStore) -> None:
        self._task = task
        self._store = store

    async def tell(self, kind: str, message: str, **facts: object) -> None:
        """Add a line; a task that was removed meanwhile has no history to keep."""
        with contextlib.suppress(RecordMissing):
            await self._store.run(
                lambda store: store.add_event(self._task.id, kind, message, **facts)
            )

    async def enter(
        self, phase: Phase, *, told: tuple[str, str] | None = None, **facts: object
    ) -> None:
        """Let the task enter a phase; what it ended with before is forgotten.

        `told` is the kind and the text of a line that is added with it, at once or not at all.
        """
        line = None if told is None else (*told, facts)
        await self._store.call(StateStore.set_phase, self._task.id, phase, told=line)

    @contextlib.asynccontextmanager
    async def with_its_end(self) -> AsyncIterator[None]:
        """Put the end of what happens inside into the history, if it is not the happy one."""
        try:
            yield
        except asyncio.CancelledError:
            with contextlib.suppress(StateError):
                await self.tell("interrupted", "Interrupted; what was received is kept")
            raise
        except TaskNotReady as error:
            await self._end(Phase.WAITING, error)
            raise
        except (DownloaderError, StateError) as error:
            await self._end(Phase.FAILED, error)
            raise

    async def _end(self, phase: Phase, error: DownloaderError | StateError) -> None:
        kind, message = "failed" if phase is Phase.FAILED else "not ready", str(error)
        with contextlib.suppress(StateError):  # the first error is the one to be told
            await self._store.call(
                StateStore.set_phase,
                self._task.id,
                phase,
                message=message,
                exit_code=error.exit_code,
                told=(kind, message, {"exit_code": error.exit_code}),
            )
