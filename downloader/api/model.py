"""What the platform answers: a dictionary whose keys are attributes too."""

# ruff: noqa: ANN401 - JSON values are of any type
from __future__ import annotations

import json
from typing import Any, Self

__all__ = ["Model"]


class Model(dict[str, Any]):
    """A dictionary whose keys can be read as attributes, all the way down.

    `result.status` and `result["status"]` are the same. A key that is also a method's name, such
    as `items` or `json`, is reached by index only.
    """

    __slots__ = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.update(*args, **kwargs)

    def json(self) -> dict[str, Any]:
        """Return the same content as plain dictionaries and lists."""
        return {key: _plain(value) for key, value in self.items()}

    def dumps(self, **json_kwargs: Any) -> str:
        """Return the content as JSON text, with non-ASCII text left readable."""
        json_kwargs.setdefault("ensure_ascii", False)
        return json.dumps(self.json(), **json_kwargs)

    def copy(self) -> Model:
        """Return a shallow copy that is a Model as well."""
        return Model(self)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take over the given items, as `dict.update` does."""
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the key's value, which becomes `default` if there is none."""
        if key not in self:
            self[key] = default
        return self[key]

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, _wrapped(value))

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc, override]  # dict's is overloaded
        self.update(other)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"The platform's answer has no {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(type(self), name):
            raise AttributeError(f"{name!r} is a method here; set the key by index instead")
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"The platform's answer has no {name!r}") from None

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(key for key in self if key.isidentifier())})

    def __repr__(self) -> str:
        return f"Model({super().__repr__()})"


def _wrapped(value: Any) -> Any:
    """Turn dictionaries into Models, inside lists too."""
    if isinstance(value, dict) and not isinstance(value, Model):
        return Model(value)
    if isinstance(value, list):
        return [_wrapped(item) for item in value]
    return value


def _plain(value: Any) -> Any:
    """Turn Models back into dictionaries, inside lists too."""
    if isinstance(value, Model):
        return value.json()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
