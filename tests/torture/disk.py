"""A disk that may lose its power: which operations it must remember, and which it may forget.

As pessimistic as POSIX: a sync of a file keeps its bytes and its size and says nothing of its
name; a sync of a directory keeps its names and says nothing of the directory's own. Of a mode, an
owner and times, `fdatasync` says nothing either. What was not synced may be kept or lost, each
operation by itself and each sector of a write by itself. Only a rename is never half done; from one
directory to another, it is the other one's sync that keeps it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torture.recording import Facts, Kind, Operation

__all__ = [
    "SECTOR_BYTES",
    "Described",
    "Disk",
    "Effect",
    "Kept",
    "Moment",
    "Named",
    "Node",
    "Sized",
    "Tree",
    "Written",
]

SECTOR_BYTES = 512  # what a disk writes whole or not at all


@dataclass(eq=False, slots=True)
class Node:
    """A file or a directory, whatever it is called by now."""

    is_directory: bool
    facts: Facts | None = None  # that it was made with; None: of no interest


@dataclass(frozen=True, slots=True)
class Written:
    """Bytes of a file; with them it may have grown."""

    node: Node
    offset: int
    data: bytes

    @property
    def stop(self) -> int:
        return self.offset + len(self.data)


@dataclass(frozen=True, slots=True)
class Sized:
    """A file's size: exactly that, or at least that."""

    node: Node
    size: int
    grows_only: bool


@dataclass(frozen=True, slots=True)
class Named:
    """Names that change at once: given to a file, or to nothing."""

    node: Node  # the directory
    names: tuple[tuple[str, Node | None], ...]
    left: tuple[Node, str] | None = None  # another directory, and the name that is gone from there


@dataclass(frozen=True, slots=True)
class Described:
    """A mode, an owner and times, given to a file or a directory."""

    node: Node
    facts: Facts


Effect = Written | Sized | Named | Described


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a disk keeps of an effect that was not synced; nothing, unless told otherwise."""

    names: bool = True
    size: bool = True
    sectors: Callable[[int], bool] = lambda _: True  # by their number in the file
    junk: Callable[[int], bytes | None] = lambda _: None  # what is in a lost one that is new


@dataclass(slots=True)
class Tree:
    """Files and directories, as they are at one time."""

    root: Node = field(default_factory=lambda: Node(is_directory=True))
    names: dict[Node, dict[str, Node]] = field(default_factory=dict)
    contents: dict[Node, bytearray] = field(default_factory=dict)
    described: dict[Node, Facts] = field(default_factory=dict)

    def copy(self) -> Tree:
        return Tree(
            self.root,
            {node: dict(names) for node, names in self.names.items()},
            {node: bytearray(content) for node, content in self.contents.items()},
            dict(self.described),
        )

    def node_at(self, path: str) -> Node:
        node = self.root
        for name in filter(None, path.split("/")):
            node = self.names[node][name]
        return node

    def apply(self, effect: Effect, kept: Kept | None = None) -> None:
        """Let an effect come true, whole or as far as it is kept."""
        kept = kept or _ALL
        if isinstance(effect, Named):
            if kept.names:
                self._rename(effect)
        elif isinstance(effect, Described):
            self.described[effect.node] = effect.facts
        elif isinstance(effect, Sized):
            if kept.size:
                self._resize(effect)
        else:
            self._write(effect, kept)
        if not isinstance(effect, Described):
            self._pass_time(effect.node)

    def _pass_time(self, node: Node) -> None:
        """Forget the time that a file or a directory was given: it has another one now."""
        facts = self.facts_of(node)
        if facts is not None:
            self.described[node] = replace(facts, mtime=None)

    def _rename(self, effect: Named) -> None:
        names = self.names.setdefault(effect.node, {})
        for name, node in effect.names:
            if node is None:
                names.pop(name, None)
            else:
                names[name] = node
        if effect.left is not None:
            directory, name = effect.left
            self.names.setdefault(directory, {}).pop(name, None)
            self._pass_time(directory)

    def _resize(self, effect: Sized) -> None:
        content = self.contents.setdefault(effect.node, bytearray())
        if len(content) < effect.size:
            content.extend(bytes(effect.size - len(content)))
        elif not effect.grows_only:
            del content[effect.size :]

    def _write(self, effect: Written, kept: Kept) -> None:
        content = self.contents.setdefault(effect.node, bytearray())
        size = len(content)
        if kept.size and size < effect.stop:
            content.extend(bytes(effect.stop - size))
        if kept is _ALL:
            content[effect.offset : effect.stop] = effect.data
            return
        for start, stop in _sectors(effect.offset, min(effect.stop, len(content))):
            if kept.sectors(start // SECTOR_BYTES):
                content[start:stop] = effect.data[start - effect.offset : stop - effect.offset]
            elif start >= size and (junk := kept.junk(start // SECTOR_BYTES)) is not None:
                content[start:stop] = junk[: stop - start]

    def nodes(self) -> dict[str, Node]:
        """Return what can be reached from the root, by its path."""
        found: dict[str, Node] = {}
        waiting = [("", self.root)]
        for place, directory in waiting:
            for name, node in sorted(self.names.get(directory, {}).items()):
                found[f"{place}{name}"] = node
                if node.is_directory:
                    waiting.append((f"{place}{name}/", node))
        return found

    def files(self) -> dict[str, bytes | None]:
        """Return the files' bytes by their paths; None for a directory."""
        return {
            path: None if node.is_directory else bytes(self.contents.get(node, b""))
            for path, node in self.nodes().items()
        }

    def facts(self) -> dict[str, Facts]:
        """Return what else is known of files and directories, by their paths."""
        known = {path: self.facts_of(node) for path, node in self.nodes().items()}
        return {path: facts for path, facts in known.items() if facts is not None}

    def facts_of(self, node: Node) -> Facts | None:
        """Return what else is known of a file or a directory, if anything is."""
        return self.described.get(node, node.facts)


_ALL = Kept()


def _sectors(start: int, stop: int) -> Iterator[tuple[int, int]]:
    while start < stop:
        edge = min(stop, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
        yield start, edge
        start = edge


@dataclass(frozen=True, slots=True)
class Moment:
    """The disk after an operation, if the power fails there."""

    operation: Operation | None  # the last one that was done; None before the first
    synced: Tree  # what must be there
    pending: Sequence[Effect]  # what may be there, in its order
    marks: Sequence[str]  # what the program has been told is safe

    def disk(self, keep: Callable[[Effect], Kept | None]) -> Tree:
        """Return the disk with what is kept of what was not synced; None keeps nothing of it."""
        tree = self.synced.copy()
        for effect in self.pending:
            if (kept := keep(effect)) is not None:
                tree.apply(effect, kept)
        return tree


class Disk:
    """Follows a recording operation by operation."""

    def __init__(self) -> None:
        self.live = Tree()
        self._synced = Tree(self.live.root)
        self._pending: list[tuple[int, Effect]] = []
        self._marks: list[str] = []
        self._by_inode: dict[int, Node] = {}

    @classmethod
    def of(cls, directory: Path) -> Disk:
        """Return a disk with what is in the directory now, all of it synced."""
        disk = cls()
        disk._by_inode[directory.stat().st_ino] = disk.live.root
        for path in sorted(directory.rglob("*")):
            node = Node(path.is_dir(), Facts.of(path))
            disk._by_inode[path.stat().st_ino] = node
            parent, name = disk._place(path.relative_to(directory).as_posix())
            disk.live.apply(Named(parent, ((name, node),)))
            if not node.is_directory:
                disk.live.contents[node] = bytearray(path.read_bytes())
        disk._synced = disk.live.copy()
        return disk

    def found_by_another(self, directory: Path) -> Disk:
        """Return the disk as the next process finds it after `kill -9`: not all of it is synced.

        Its files are in the directory, written out anew.
        """
        disk = Disk()
        disk.live, disk._synced = self.live.copy(), self._synced.copy()
        disk._pending = [(-1, effect) for _, effect in self._pending]
        disk._by_inode = {
            (directory / path).stat().st_ino: node
            for path, node in {"": disk.live.root, **disk.live.nodes()}.items()
        }
        return disk

    def moments(self, operations: Iterable[Operation]) -> Iterator[Moment]:
        """Yield the moment before the first operation, and that after each of them.

        A moment is valid until the next one is asked for.
        """
        yield self._moment(None)
        for operation in operations:
            self._do(operation)
            if operation.kind is not Kind.MARK:
                yield self._moment(operation)

    def _moment(self, operation: Operation | None) -> Moment:
        return Moment(operation, self._synced, [one for _, one in self._pending], self._marks)

    def _do(self, operation: Operation) -> None:
        if operation.kind is Kind.MARK:
            self._marks.append(operation.path)
        elif operation.kind in (Kind.SYNC, Kind.DATASYNC):
            self._sync(operation)
        else:
            effect = self._effect(operation)
            if effect is not None:
                self.live.apply(effect)
                self._pending.append((operation.number, effect))

    def _sync(self, operation: Operation) -> None:
        """Remember what was done to the node before the sync began."""
        node, left = self._by_inode[operation.inode], []
        for number, effect in self._pending:
            is_covered = operation.kind is Kind.SYNC or not isinstance(effect, Described)
            if effect.node is node and number < operation.began and is_covered:
                self._synced.apply(effect)
            else:
                left.append((number, effect))
        self._pending = left

    def _effect(self, operation: Operation) -> Effect | None:
        kind = operation.kind
        if kind in (Kind.CREATE, Kind.MKDIR):
            return self._made(operation)
        if kind in (Kind.UNLINK, Kind.RMDIR):
            directory, name = self._place(operation.path)
            return Named(directory, ((name, None),))
        if kind in (Kind.RENAME, Kind.LINK):
            return self._renamed(operation)
        if kind is Kind.UNKNOWN:
            raise NotImplementedError(f"Nobody knows what a crash makes of {operation}")
        node = self._by_inode[operation.inode]
        if kind is Kind.TOUCH:
            return Described(node, operation.facts)
        if kind is Kind.WRITE:
            return Written(node, operation.offset, operation.data)
        return Sized(node, operation.length, grows_only=kind is Kind.RESERVE)

    def _made(self, operation: Operation) -> Named | None:
        node = Node(operation.kind is Kind.MKDIR, operation.facts)
        self._by_inode[operation.inode] = node  # it may have been another one's before
        if not operation.path:
            return None
        directory, name = self._place(operation.path)
        return Named(directory, ((name, node),))

    def _renamed(self, operation: Operation) -> Named:
        old, name = self._place(operation.path)
        new, other = self._place(operation.other)
        node = self.live.names[old][name]
        if operation.kind is Kind.LINK:
            return Named(new, ((other, node),))
        if old is not new:
            return Named(new, ((other, node),), left=(old, name))
        return Named(old, ((name, None), (other, node)))

    def _place(self, path: str) -> tuple[Node, str]:
        path = os.path.normpath(path)
        parent, _, name = path.rpartition("/")
        return self.live.node_at(parent), name
