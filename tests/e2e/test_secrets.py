"""After a whole run with everything that can go wrong, no secret is anywhere but in memory."""

import re
from pathlib import Path

from e2e_helpers import PAIR, until

from downloader.sandbox import Fault, PlatformFault

pytest_plugins = ["e2e_helpers"]

TOKEN = "sts-token-of-nobody"


def secrets_of(sandbox):
    """Return what must not be seen: the secret, and what is secret in a link to an object."""
    link = sandbox.store.object_url("run/a.vcf.gz", security_token=TOKEN)
    access_key = re.search(r"OSSAccessKeyId=([^&]+)", link)[1]
    return [sandbox.app_secret, access_key, TOKEN]


def leaks(text, secrets):
    """Return the secrets in the text; a signature is one whatever its value is."""
    signed = re.findall(r"(?i)(?:signature|security-token|ossaccesskeyid)(?:=|%3D)[\w%]+", text)
    return [secret for secret in secrets if secret in text] + signed


async def test_no_secret_is_told_or_kept(program, sandbox):
    """Through expired links, redirects, a platform that fails, and a log of every call."""
    for key, data in PAIR.items():
        sandbox.store.put(key, data)
    links = [sandbox.store.object_url(key, security_token=TOKEN) for key in PAIR]
    bare = sandbox.store.object_url("run/gone.vcf.gz", security_token=TOKEN)
    sandbox.add_task(task_id="good", result=links)
    sandbox.add_task(task_id="gone", result=[bare])
    sandbox.add_task(task_id="evil", result=["https://evil.example/a?Signature=c2VjcmV0"])
    sandbox.add_task(task_id="told", states=("FAILURE",), result=f"cannot read {links[0]}")
    sandbox.platform.inject(PlatformFault.HTML)
    sandbox.store.inject(Fault.EXPIRED, key="run/a.vcf.gz")
    sandbox.store.inject(Fault.REDIRECT, key="run/a.vcf.gz.tbi", location=links[1])
    sandbox.store.inject(Fault.CUT, key="run/a.vcf.gz", after=1000)
    held = sandbox.store.inject(Fault.HANG, key="run/a.vcf.gz")
    running = await program.start("fetch", "good", "gone", "evil", "told", "--verbose", "--json")
    await held.happened.wait()
    await until(lambda: "evil.example" in running.text("stderr"))
    proc = Path("/proc", str(running.pid))
    titles = (proc / "cmdline").read_text() + (proc / "comm").read_text()
    held.release()
    ended = await running.ends()
    assert ended.exit_code == 1
    assert (program.dest / "good" / "a.vcf.gz").read_bytes() == PAIR["run/a.vcf.gz"]
    secrets = secrets_of(sandbox)
    assert {*secrets[1:]} < {*leaks(links[0], secrets)}  # it is found where it is
    history = await program.run("status", "--json")
    assert "renewed" in ended.stdout
    everything = {
        "title": titles,
        "stdout": ended.stdout,
        "stderr": ended.stderr,
        "status": history.stdout,
        **{
            str(path): path.read_bytes().decode("latin-1")
            for place in (program.dest, program.state.parent, program.home, program.cwd)
            for path in place.rglob("*")
            if path.is_file() and not path.name.startswith(".coverage")
        },
    }
    assert str(program.state) in everything
    assert str(program.dest / "good" / "bge-manifest.json") in everything
    assert {
        where: found for where, text in everything.items() if (found := leaks(text, secrets))
    } == {}
