"""The error tree, and links that tell no secret."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader import errors
from downloader.errors import DownloaderError, Interrupted, redacted


def drawn_tree():
    """Read the tree at the top of the module: name, parent, exit code, retryable."""
    parents = {}
    for line in errors.__doc__.splitlines():
        if not line.startswith("    ") or "exit code" in line:
            parents |= {0: "DownloaderError"} if "exit code" in line else {}
            continue
        drawing, _, rest = line[4:].rpartition("\u2500 ")
        depth = (len(drawing) + 2) // 4
        name, code, *more = rest.replace("129, ", "").replace(" or 143", "").split()
        parents[depth] = name
        yield name, parents[depth - 1], int(code), more == ["yes"]


TREE = list(drawn_tree())


def every_class(base):
    for each in base.__subclasses__():
        if each.__module__ == errors.__name__:
            yield each
            yield from every_class(each)


def test_the_tree_is_read_whole():
    assert {name for name, *_ in TREE} == {each.__name__ for each in every_class(DownloaderError)}
    assert set(errors.__all__) == {name for name, *_ in TREE} | {
        "DownloaderError",
        "as_disk_error",
        "disk_error",
        "redacted",
    }


@pytest.mark.parametrize(("name", "parent", "exit_code", "retryable"), TREE)
def test_every_error_is_what_the_drawn_tree_says(name, parent, exit_code, retryable):
    """Scripts act on the exit codes, so the drawing is a contract."""
    error = getattr(errors, name)
    assert parent in {base.__name__ for base in error.__bases__}
    assert error.retryable is retryable
    if error is Interrupted:
        codes = [Interrupted("by a signal", exit_code=code).exit_code for code in (129, 130, 143)]
        assert codes == [129, exit_code, 143]
    else:
        assert error.exit_code == exit_code


def test_every_errors_docstring_is_a_sentence():
    for error in [DownloaderError, *every_class(DownloaderError)]:
        assert error.__doc__.partition("\n")[0].endswith((".", ":", ",")), error


@pytest.mark.parametrize("error", [errors.PlatformUnavailable, errors.StoreUnavailable])
def test_a_passing_fault_carries_the_asked_pause(error):
    assert error("later").retry_after is None
    assert error("later", retry_after=3.0).retry_after == 3.0
    assert str(error("later", retry_after=3.0)) == "later"


def test_a_refused_call_tells_the_platforms_own_words():
    refused = errors.BusinessError(4003, "wrong signature", {"x": 1})
    assert str(refused) == "The platform refused the call: wrong signature (code 4003)"
    assert (refused.code, refused.msg, refused.data) == (4003, "wrong signature", {"x": 1})
    assert "no reason given" in str(errors.BusinessError(1, ""))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h/k", "https://h/k"),
        ("https://h/k?Signature=geheim", "https://h/k?\u2026"),
        ("https://h/k#geheim", "https://h/k"),
        ("https://geheim:geheim@h:8080/k", "https://h:8080/k"),
        ("https://[::1]:8080/k?geheim", "https://[::1]:8080/k?\u2026"),
        ("https://h/d/k%3FSignature%3Dgeheim", "https://h/d/k%3F\u2026"),
        ("https://h/k%253FSignature%253Dgeheim", "https://h/k%253F\u2026"),
        ("https://h/k&OSSAccessKeyId=geheim&x=geheim", "https://h/k&\u2026"),
        ("https://h/k;security-token=geheim", "https://h/k;\u2026"),
        ("https://h/k&sign=geheim", "https://h/k&\u2026"),
        ("https://h/design=1/k", "https://h/design=1/k"),
        ("https://[geheim", "<unreadable URL>"),
        ("https://h:geheim/k", "<unreadable URL>"),
        ("Signature=geheim", "://\u2026"),
    ],
)
def test_a_link_is_shown_without_what_opens_it(url, shown):
    assert redacted(url) == shown


@given(
    before=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    word=st.sampled_from(["Signature", "security-token", "OSSAccessKeyId", "x-oss-credential"]),
)
def test_wherever_the_secret_stands_it_is_not_shown(before, word):
    assert "geheim" not in redacted(f"{before}{word}=geheim")
    assert "geheim" not in redacted(f"https://h/{before}?{word}=geheim")
