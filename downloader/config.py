"""Every setting, with its unit, default and meaning, and where its value comes from.

Flags win over the environment (`BGE_<NAME>`), over `./bge-downloader.toml`, over the user's and
the machine's `bge-downloader/config.toml`, over defaults. Whatever is wrong with one is told in
one sentence that names its source.

Importing this takes a quarter of a second, so the rest of the package does it only when needed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from downloader import setting_kinds as kinds
from downloader.errors import InvalidSettings, MissingCredentials
from downloader.hook_rules import VARIABLES
from downloader.setting_sources import (
    ENV_PREFIX,
    Layer,
    default_layer,
    env_name,
    environment_layer,
    file_layer,
    flag_layer,
    flag_name,
    is_there,
    nearest,
    read_credential,
    systemd_credential,
    xdg_directory,
)
from downloader.timetable import Window
from state.addresses import holds_password

__all__ = [
    "SettingDoc",
    "Settings",
    "config_paths",
    "describe_settings",
    "explain_settings",
    "exposed_secrets",
    "load_settings",
    "service_defaults",
    "unknown_environment",
]

APP = "bge-downloader"
TEST_PREFIX = "BGE_TEST_"
GROUP_AND_OTHERS = 0o077
MAX_SHOWN = 60
SECRETS = ("app_secret", "webhook_secret")
MIB = 1024**2


def config_paths() -> list[Path]:
    """Return where a settings file may be, the one that wins first."""
    user = xdg_directory("XDG_CONFIG_HOME", "~/.config")
    users = [user / APP / "config.toml"] if user else []
    return [Path(f"{APP}.toml"), *users, Path("/etc") / APP / "config.toml"]


def _default_state() -> str:
    base = xdg_directory("XDG_STATE_HOME", "~/.local/state")
    if base is None:
        raise InvalidSettings("There is no home directory to keep the state in; set BGE_STATE")
    return str(base / APP / "state.db")


class Settings(BaseSettings):
    """Every setting of the program, checked; its repr shows no credential and no password."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", case_sensitive=True, hide_input_in_errors=True
    )

    app_key: Annotated[str | None, kinds.secret(str)] = Field(
        None, repr=False, description="The key that the platform issued."
    )
    app_secret: Annotated[SecretStr | None, kinds.secret(SecretStr)] = Field(
        None, description="The secret that belongs to it; never an argument."
    )
    app_secret_file: Annotated[Path | None, kinds.path()] = Field(
        None, description="A file whose first line is the secret."
    )
    endpoint: Annotated[str, kinds.endpoint()] = Field(
        "https://api.private.omgut.com", repr=False, description="The platform's address."
    )
    dest: Annotated[Path, kinds.path()] = Field(
        Path(), description="The directory in which each task gets its own."
    )
    state: Annotated[str, kinds.state_location()] = Field(
        default_factory=_default_state,
        repr=False,
        description="The state file, or a `postgresql+psycopg://` URL for a fleet.",
    )
    timeout: Annotated[float, kinds.duration()] = Field(
        16, description="Seconds that one call to the platform may take."
    )
    max_retries: Annotated[int, kinds.whole_number(0, 100)] = Field(
        3, description="Further attempts of a platform call that met a passing fault."
    )
    poll_interval: Annotated[float, kinds.duration()] = Field(
        5, description="Seconds before a task is asked for the second time; then they grow."
    )
    poll_max_interval: Annotated[float, kinds.duration()] = Field(
        300, description="Longest pause in seconds between two polls of one task."
    )
    poll_deadline: Annotated[float, kinds.duration()] = Field(
        7 * 86400, description="Seconds after which a task that is never ready is given up."
    )
    retry_max_delay: Annotated[float, kinds.duration()] = Field(
        60, description="Longest pause in seconds between two attempts of anything."
    )
    stall_timeout: Annotated[float, kinds.duration()] = Field(
        30, description="Seconds without a byte after which a transfer is attempted anew."
    )
    connect_timeout: Annotated[float, kinds.duration()] = Field(
        10, description="Seconds that opening a connection to the store may take."
    )
    segments: Annotated[int, kinds.whole_number(1, 64)] = Field(
        16, description="Connections to the store for one file at the most."
    )
    segment_size: Annotated[int, kinds.size(MIB)] = Field(
        64 * MIB, description="Bytes of one ranged request at the most."
    )
    parallel_files: Annotated[int, kinds.whole_number(1, 64)] = Field(
        64, description="Files that are transferred at the same time at the most."
    )
    connections: Annotated[int, kinds.whole_number(1, 256)] = Field(
        64,
        description="Connections to the store in all at the most; as many are used as bring more.",
    )
    buffer_memory: Annotated[int, kinds.size(MIB)] = Field(
        16 * MIB, description="Bytes of memory for what is on its way to the disk."
    )
    limit_rate: Annotated[int | None, kinds.rate(1024)] = Field(
        None, description="Bytes per second of all transfers together."
    )
    min_free_space: Annotated[int, kinds.size()] = Field(
        0, description="Bytes of free disk space below which nothing new is started."
    )
    allowed_hosts: Annotated[tuple[str, ...], kinds.hosts()] = Field(
        ("*.aliyuncs.com", "*.omgut.com"),
        description="Hosts that may be downloaded from; inner ones only by their full name.",
    )
    checksums: Annotated[tuple[Literal["sha256", "md5"], ...], kinds.choices("sha256", "md5")] = (
        Field((), description="Checksum files to write beside the results: SHA256SUMS, MD5SUMS.")
    )
    verify: Annotated[Literal["full", "quick", "off"], kinds.choice("full", "quick", "off")] = (
        Field("full", description="How thoroughly a VCF and its index are checked.")
    )

    parallel_tasks: Annotated[int, kinds.whole_number(1, 1000)] = Field(
        64, description="Service: tasks whose files are brought at the same time at the most."
    )
    calls_per_second: Annotated[float, kinds.decimal(0.01, 1000)] = Field(
        5, description="Service: calls to the platform per second, for all tasks together."
    )
    task_attempts: Annotated[int, kinds.whole_number(1, 1000)] = Field(
        8, description="Service: attempts at a task, with growing pauses, before it has failed."
    )
    limit_rate_times: Annotated[tuple[Window, ...], kinds.windows()] = Field(
        (), description="Service: other values of `limit_rate` at certain times of the week."
    )
    inbox: Annotated[Path | None, kinds.path()] = Field(
        None, description="Service: a folder in which files name the tasks to fetch."
    )
    on_complete: Annotated[tuple[str, ...] | None, kinds.command()] = Field(
        None, description="Service: a command to run when a task's result is there."
    )
    on_failure: Annotated[tuple[str, ...] | None, kinds.command()] = Field(
        None, description="Service: a command to run when a task has failed for good."
    )
    webhook: Annotated[str | None, kinds.web_address()] = Field(
        None, repr=False, description="Service: an address to which each task's end is posted."
    )
    webhook_secret: Annotated[SecretStr | None, kinds.secret(SecretStr)] = Field(
        None, description="Service: the secret that signs what is posted."
    )
    webhook_secret_file: Annotated[Path | None, kinds.path()] = Field(
        None, description="Service: a file whose first line is that secret."
    )
    hook_timeout: Annotated[float, kinds.duration()] = Field(
        300, description="Service: seconds that a command, or a post, may take."
    )
    keep_history: Annotated[float, kinds.duration()] = Field(
        90 * 86400, description="Service: seconds that an ended task stays in the state."
    )
    log_format: Annotated[Literal["auto", "text", "json"], kinds.choice("auto", "text", "json")] = (
        Field("auto", description="Service: lines for people and the journal, or JSON.")
    )

    @field_validator("*", mode="before")
    @classmethod
    def _parse(cls, value: object, info: ValidationInfo) -> object:
        name = str(info.field_name)
        if value is None and cls.model_fields[name].default is None:
            return None
        return _kind(name).parse(value)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read this program's own sources, and no `.env` file."""
        layers = (InitSettingsSource(settings_cls, dict(layer.values)) for layer in _outer_layers())
        return init_settings, *layers

    def credentials(self) -> tuple[str, str]:
        """Return app_key and app_secret, read from their files if that is where they are.

        Raises:
            MissingCredentials: one of them was not given, or its file cannot be read.
        """
        pair = {
            "app_key": self.app_key,
            "app_secret": self.app_secret and self.app_secret.get_secret_value(),
        }
        for name, value in pair.items():
            if not value and (file := _credential_file(name, self)):
                pair[name] = read_credential(file)
        app_key, app_secret = pair.values()
        if app_key and app_secret:
            return app_key, app_secret
        raise MissingCredentials(
            f"No {' and no '.join(name for name, value in pair.items() if not value)} was given; "
            "set BGE_APP_KEY and BGE_APP_SECRET, or name a file that holds the secret with "
            f"app_secret_file, or write them into ~/.config/{APP}/config.toml, or let systemd "
            "load the credentials app_key and app_secret"
        )

    def signing_secret(self) -> str | None:
        """Return the secret that signs posts, read from its file if that is where it is.

        Raises:
            MissingCredentials: its file cannot be read.
        """
        if self.webhook_secret is not None:
            return self.webhook_secret.get_secret_value()
        file = _credential_file("webhook_secret", self)
        return read_credential(file) if file else None


@dataclass(frozen=True, slots=True)
class SettingDoc:
    """What there is to know of one setting; `flag` is None where it has none."""

    name: str
    type: str
    default: str
    meaning: str
    env: str
    flag: str | None


def load_settings(
    flags: Mapping[str, object] = {}, *, defaults: Mapping[str, object] = {}
) -> Settings:
    """Return the settings out of all sources.

    Args:
        flags: what the command line gives, by the settings' names, as text or Python values;
            None counts as not given.
        defaults: what the command prefers to the settings' own defaults.

    Raises:
        InvalidSettings: the first thing that is wrong, in one sentence that names its source.
    """
    return _settings_of(_layers(flags, defaults))


def service_defaults() -> dict[str, object]:
    """Return what the service prefers to the defaults: its own directory, and some free space."""
    directory = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    places = {"dest": f"{directory}/results", "state": f"{directory}/state.db"} if directory else {}
    return {"min_free_space": 1024 * MIB, **places}


def describe_settings() -> list[SettingDoc]:
    """Return what there is to know of every setting, the same on every machine."""
    return [
        SettingDoc(
            name=name,
            type=_kind(name).name,
            default=(
                f"$XDG_STATE_HOME/{APP}/state.db"
                if name == "state"
                else _kind(name).show(field.default)
            ),
            meaning=field.description or "",
            env=env_name(name),
            flag=flag_name(name),
        )
        for name, field in Settings.model_fields.items()
    ]


def explain_settings(
    flags: Mapping[str, object] = {}, *, defaults: Mapping[str, object] = {}
) -> list[tuple[str, str, str]]:
    """Return every setting's name, its value without secrets, and where the value is from.

    Raises:
        InvalidSettings: as `load_settings` does.
    """
    layers = _layers(flags, defaults)
    settings = _settings_of(layers)
    explained = []
    for name in Settings.model_fields:
        value = getattr(settings, name)
        layer = next((layer for layer in layers if name in layer.values), None)
        origin = layer.origin(name) if layer else "default"
        if value is None and (file := _credential_file(name, settings)) and is_there(file):
            value, origin = "set", str(file)
        explained.append((name, _kind(name).show(value), origin))
    return explained


def exposed_secrets() -> list[Path]:
    """Return the files that hold a secret and that are open to other users.

    Raises:
        InvalidSettings: a settings file cannot be read.
    """
    holders = [file for file in config_paths() if _holds_secret(_file_layer(file))]
    for layer in _outer_layers():
        named = [layer.values.get(f"{name}_file") for name in SECRETS]
        # `~` without Path, which raises where there is no such user.
        holders += [Path(os.path.expanduser(file)) for file in named if isinstance(file, str)]  # noqa: PTH111
    present = filter(is_there, dict.fromkeys(holders))
    return [file for file in present if file.stat().st_mode & GROUP_AND_OTHERS]


def _holds_secret(layer: Layer) -> bool:
    # The address of a webhook often is one: whoever knows a chat service's may post there.
    has_one = not {*SECRETS, "webhook"}.isdisjoint(layer.values)
    return has_one or holds_password(str(layer.values.get("state", "")))


def unknown_environment() -> list[tuple[str, str | None]]:
    """Return the BGE_* variables that no setting has, each with the nearest one that is known.

    Those by which hooks are told are none: a command may look what is wrong.
    """
    known = {*map(env_name, _names()), *VARIABLES}
    unknown = []
    for variable in sorted(os.environ):
        is_ours = variable.startswith(ENV_PREFIX) and not variable.startswith(TEST_PREFIX)
        if is_ours and variable not in known:
            near = nearest(variable.removeprefix(ENV_PREFIX), _names())
            unknown.append((variable, env_name(near) if near else None))
    return unknown


def _kind(name: str) -> kinds.Kind:
    metadata = Settings.model_fields[name].metadata
    return next(item for item in metadata if isinstance(item, kinds.Kind))


def _layers(flags: Mapping[str, object], defaults: Mapping[str, object]) -> list[Layer]:
    """Return every source, the one that wins first."""
    return [flag_layer(flags, _names()), *_outer_layers(), default_layer(defaults)]


def _outer_layers() -> list[Layer]:
    return [environment_layer(_names()), *map(_file_layer, config_paths())]


def _file_layer(file: Path) -> Layer:
    return file_layer(file, _names())


def _names() -> list[str]:
    return list(Settings.model_fields)


def _settings_of(layers: list[Layer]) -> Settings:
    given: dict[str, Any] = {}
    for layer in reversed(layers):
        given |= layer.values
    try:
        return Settings(**given)
    except ValidationError as error:
        # Neither chained nor quoted: pydantic's own words are many lines, and may hold a secret.
        raise InvalidSettings(_sentence(str(error.errors()[0]["loc"][0]), layers)) from None


def _sentence(name: str, layers: list[Layer]) -> str:
    """Say which source gave what, and what was expected."""
    kind = _kind(name)
    layer = next((layer for layer in layers if name in layer.values), default_layer({}))
    if kind.sensitive or name not in layer.values:
        return f"{layer.spelled(name)} cannot be used: {kind.expected} is expected"
    found = layer.values[name]
    shown = repr(str(found) if isinstance(found, Path) else found)
    if len(shown) > MAX_SHOWN:
        shown = shown[:MAX_SHOWN] + "…"
    return f"{layer.spelled(name)} is {shown}, but {kind.expected} is expected"


def _credential_file(name: str, settings: Settings) -> Path | None:
    """Return the file that stands in for a credential that was not given itself."""
    if name in SECRETS and (file := getattr(settings, f"{name}_file")) is not None:
        return Path(file)
    return systemd_credential(name) if name in {"app_key", *SECRETS} else None
