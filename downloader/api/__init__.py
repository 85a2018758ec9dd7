"""The platform's private API: ask it about tasks, surveys and links."""

from downloader.api.client import AsyncPrivateAPI, PrivateAPI
from downloader.api.model import Model
from downloader.api.turns import Turns
from downloader.errors import BusinessError

__all__ = ["AsyncPrivateAPI", "BusinessError", "Model", "PrivateAPI", "Turns"]
