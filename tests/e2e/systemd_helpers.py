"""A real systemd for tests: booted in namespaces of its own, beside whatever runs this machine.

It has its own processes, mounts, control groups and host name. /etc, /var, /run, /tmp, /dev and
/opt are its own and in memory, everything else is read-only, so nothing of this machine changes.
Only the network is shared, so that the sandbox on loopback can be reached.

It lives as long as its standard input is open: a test run that is killed leaves nothing behind.
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"
BOOT_SECONDS = 30  # it takes a tenth of one
UNIT_DIRECTORY = "/run/systemd/system"
PATH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NAMESPACES = ("--mount", "--pid", "--cgroup", "--uts", "--ipc")
PROGRAMS = ("unshare", "nsenter", "mount", "systemctl", "journalctl", "systemd-analyze")

# The targets that units are bound to by default; the real ones would start half a machine.
TARGETS = ("sysinit", "basic", "shutdown", "network-online", "multi-user")
JOURNAL_UNITS = (
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-journald-dev-log.socket",
)
BOOT_TARGET = """\
[Unit]
Requires=sysinit.target basic.target systemd-journald.service
After=sysinit.target basic.target systemd-journald.service
"""

# In a mount namespace of its own: puts the machine into a control group, and cleans up after it.
KEEPER = r"""
set -eu
work=$1; boot=$2; shift 2
mkdir "$work/cgroup" "$work/stage"
mount -t cgroup2 cgroup2 "$work/cgroup"
own=$(sed -n 's/^0:://p' /proc/self/cgroup)
group=$work/cgroup${own%/}/bge-test-$$
mkdir "$group"
(
  echo 0 >"$group/cgroup.procs"
  exec unshare --fork --kill-child --pid --mount-proc --mount --cgroup --uts --ipc \
    sh -c "$boot" boot "$work/stage" "$@"
) &
machine=$!
cat >/dev/null  # until whoever started us is gone, or says so
kill -KILL "$machine" 2>/dev/null || true
wait "$machine" || true
for _ in $(seq 50); do
  find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && exit
  sleep 0.1
done
echo "$group is not empty" >&2
exit 1
"""

# In all the namespaces, as process 1: lays the machine's own directories over this one's.
BOOT = r"""
set -eu
stage=$1 python=$2 packages=$3 checkout=$4 units=$5 systemd=$6 notify=$7
mount -t tmpfs -o mode=755 tmpfs "$stage"
cd "$stage"
mkdir -p dev/shm etc/systemd etc/bge-downloader opt/python opt/packages opt/checkout bin run
for node in null zero full random urandom tty; do
  : >"dev/$node"
  mount --bind "/dev/$node" "dev/$node"
done
ln -s /proc/self/fd dev/fd
ln -s pts/ptmx dev/ptmx
for name in passwd group nsswitch.conf ld.so.cache hosts resolv.conf localtime ssl alternatives; do
  [ ! -e "/etc/$name" ] || cp -a "/etc/$name" etc/
done
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
# Not the kernel's messages and audit, which are this machine's.
printf '[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=\nRateLimitBurst=0\n' \
  >etc/systemd/journald.conf
mount --bind "$python" opt/python
mount --bind "$packages" opt/packages
mount --bind "$checkout" opt/checkout
cp "$units/bge-downloader" bin/
chmod 755 bin/bge-downloader
mkdir -p run/systemd run/lock
cp -r "$units" run/systemd/system
umount -l -R /sys
mount -t sysfs sysfs /sys
mount -o remount,bind,ro /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount --rbind dev /dev
mount --rbind opt /opt
mount --bind etc /etc
mount --bind bin /usr/local/bin
mount --bind run /run
mount -t tmpfs -o mode=755 tmpfs /var
mkdir -p /var/lib /var/log /var/cache
mkdir -m 1777 /var/tmp
ln -s /run /var/run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -o remount,bind,ro /
mount --make-rshared /  # as machines have it: credentials are mounted next door
cd /
exec env -i container=test PATH="$PATH" \
  NOTIFY_SOCKET="$notify" SYSTEMD_UNIT_PATH=/run/systemd/system \
  "$systemd" --system --unit=machine.target --log-target=journal --show-status=no
"""


def program(python):
    """Return the program's text, where the units expect it: the code under test."""
    return (
        "#!/bin/sh\n"
        "export PYTHONPATH=/opt/checkout:/opt/packages LD_LIBRARY_PATH=/opt/python/lib\n"
        f'exec /opt/python/bin/{python} -s -m downloader "$@"\n'
    )


class Machine:
    """A machine that runs systemd, seen from outside."""

    def __init__(self, pid):
        self._pid = pid
        self.root = Path(f"/proc/{pid}/root")

    def run(self, *command, check=True):
        """Run a command in the machine; return how it ended."""
        inside = ["nsenter", f"--target={self._pid}", *NAMESPACES, "--"]
        ended = subprocess.run(
            [*inside, *map(str, command)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={"PATH": PATH, "SYSTEMD_UNIT_PATH": UNIT_DIRECTORY, "LC_ALL": "C"},
            check=False,
            timeout=60,
        )
        assert not check or ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
        return ended

    def systemctl(self, *arguments, check=True):
        return self.run("systemctl", *arguments, check=check)

    def show(self, unit, name):
        """Return one property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit).stdout.strip()

    def journal(self, *matches):
        """Return the entries of the journal that match, oldest first."""
        self.run("journalctl", "--sync")
        lines = self.run("journalctl", "--quiet", "--output=json", *matches).stdout.splitlines()
        return [json.loads(line) for line in lines]

    def path(self, place):
        """Return where an absolute path of the machine is, seen from here."""
        return self.root / str(place).lstrip("/")

    def write(self, place, text, *, mode=0o644):
        """Write a file of the machine."""
        file = self.path(place)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode)
        file.chmod(mode)
        file.write_text(text)

    def configure(self, unit, text, *, name):
        """Add a drop-in to a unit, in the place of any other of that name."""
        self.write(f"{UNIT_DIRECTORY}/{unit}.d/{name}.conf", text)
        self.systemctl("daemon-reload")


def why_no_machine(directory):
    """Return why no systemd can be booted here; None if it can."""
    if os.geteuid() != 0:
        return "booting systemd in namespaces needs root"
    if _systemd() is None:
        return "systemd is not installed"
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"{', '.join(missing)}: not installed"
    mounting = ("mount", "-t", "cgroup2", "cgroup2")
    tried = subprocess.run(
        ["unshare", "--fork", *NAMESPACES, "--mount-proc", *mounting, directory],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode != 0:
        return f"no namespaces, or no cgroup2, to boot systemd in: {tried.stderr.strip()}"
    return None


@contextlib.contextmanager
def booted(directory):
    """Boot a machine with the units of this project; it is gone when this is left."""
    _write_units(directory / "units")
    log = directory / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        address = f"bge-test-{os.getpid()}-{secrets.token_hex(4)}"  # no path: mounts are its own
        told.bind(f"\0{address}")
        told.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        keeper = _start(directory, f"@{address}", log)
        with _ended_at_last(keeper, log):
            pid = _pid_once_ready(told, log)
            told.close()  # it goes on telling, and would wait for us to listen
            yield Machine(pid)


def _start(directory, notify, log):
    arguments = [
        *(directory, BOOT),
        *(sys.base_prefix, sysconfig.get_path("platlib"), ROOT),
        *(directory / "units", _systemd(), notify),
    ]
    with log.open("w") as stderr:
        return subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", KEEPER, "keeper", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=stderr,
            stderr=stderr,
            env={"PATH": PATH},
            start_new_session=True,  # Ctrl-C is for the test run, which then closes our pipe
        )


@contextlib.contextmanager
def _ended_at_last(keeper, log):
    with keeper:
        try:
            yield
        finally:
            keeper.stdin.close()
            assert keeper.wait(BOOT_SECONDS) == 0, log.read_text()


def _pid_once_ready(told, log):
    """Return the number that process 1 of the machine has here, once everything is started."""
    told.settimeout(BOOT_SECONDS)
    credentials = struct.Struct("3i")
    message = b""
    while b"READY=1" not in message.splitlines():
        try:
            message, ancillary, _, _ = told.recvmsg(4096, socket.CMSG_SPACE(credentials.size))
        except TimeoutError:
            pytest.fail(f"systemd did not boot:\n{log.read_text()}")
    return credentials.unpack(ancillary[0][2])[0]


def _write_units(directory):
    directory.mkdir()
    for name in TARGETS:
        (directory / f"{name}.target").write_text(f"[Unit]\nDescription={name}\n")
    (directory / "machine.target").write_text(BOOT_TARGET)
    library = _systemd().parents[1] / "systemd/system"
    sources = [*(library / name for name in JOURNAL_UNITS), *UNITS.glob("*.service")]
    for source in sources:
        shutil.copy(source, directory)
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (directory / "bge-downloader").write_text(program(python))


def _systemd():
    """Return where systemd is: on no PATH."""
    places = (Path("/usr/lib/systemd/systemd"), Path("/lib/systemd/systemd"))
    return next((place for place in places if place.is_file()), None)
