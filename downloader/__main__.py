"""`python -m downloader` is `bge-downloader`."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the program; Ctrl-C before it has begun is no error of ours either."""
    try:
        from downloader.cli import main as run  # noqa: PLC0415 - its imports can be interrupted

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
