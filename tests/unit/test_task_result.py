"""A result is hostile until it is read: every name stays in the task's directory."""

from itertools import takewhile
from pathlib import PurePosixPath
from types import MappingProxyType
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from downloader.api import Model
from downloader.errors import BadTaskResult, DownloaderError, HostNotAllowed, InvalidTaskId
from downloader.hosts import HostRules
from downloader.task_result import RESERVED_NAMES, plan_objects, valid_task_id

RULES = HostRules.of(["*.aliyuncs.com"])
STORE = "https://results.oss-cn-beijing.aliyuncs.com"


def plan(*paths, store=STORE):
    return plan_objects([f"{store}/{path}" for path in paths], rules=RULES)


def names(*paths, store=STORE):
    return [planned.name for planned in plan(*paths, store=store)]


# Task ids


@pytest.mark.parametrize(
    "text", ["69909614-9e77-4fbd-b437-4f5b284e3dcc", "a", "A_1.b", "0", "a" * 128, "x.partially"]
)
def test_what_a_platform_gives_is_a_task_id(text):
    assert valid_task_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "\n", "a ", " a", "a\n", "a b", "a\0b", "a" * 129),
        *(".", "..", "../x", "/etc", "a/b", "a\\b", ".hidden", "-rf", "--dest", "_a"),
        *("a%2fb", "a?b", "a;b", "$(x)", "~", "\u53d8\u5f02", "\u0661", "\ud800", "a\u202eb"),
        "x.partial",  # the name of another task's partial directory
    ],
)
def test_every_other_text_is_no_task_id(text):
    with pytest.raises(InvalidTaskId):
        valid_task_id(text)


def test_a_long_wrong_task_id_is_not_printed_whole():
    with pytest.raises(InvalidTaskId) as caught:
        valid_task_id("x" * 100_000)
    assert len(str(caught.value)) < 200


@given(text=st.text(max_size=40))
def test_a_task_id_is_one_harmless_component(text):
    try:
        task_id = valid_task_id(text)
    except InvalidTaskId:
        return
    assert PurePosixPath("/d", task_id).parent == PurePosixPath("/d")
    assert task_id.isascii()
    assert task_id.isprintable()


# Results that are none


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (None, "is null"),
        ([], "is empty"),
        ({}, "is an object"),
        ({"urls": []}, "is an object"),
        (Model({"urls": []}), "is an object"),  # as the platform's client hands it over
        (MappingProxyType({}), "is an object"),
        ("", "is text"),
        (f"{STORE}/a", "is text"),
        (0, "is a number"),
        (float("nan"), "is a number"),
        (True, "is true or false"),
        ([None], "Entry 1 .* is null"),
        ([f"{STORE}/a", 5], "Entry 2 .* is a number"),
        ([[f"{STORE}/a"]], "Entry 1 .* is a list"),
        ([{"url": f"{STORE}/a"}], "Entry 1 .* is an object"),
        ([""], "Entry 1 .* is empty"),
    ],
)
def test_a_result_that_is_no_list_of_links_is_named_as_what_it_is(result, told):
    with pytest.raises(BadTaskResult, match=told):
        plan_objects(result, rules=RULES)


@pytest.mark.parametrize(
    "link",
    [
        "not a link",
        "file:///etc/passwd",
        "file://results.oss-cn-beijing.aliyuncs.com/etc/passwd",
        "ftp://results.oss-cn-beijing.aliyuncs.com/a",
        "http://results.oss-cn-beijing.aliyuncs.com/a",
        "https://evil.net/a",
        "https://user@results.oss-cn-beijing.aliyuncs.com/a",
        "https://results.oss-cn-beijing.aliyuncs.com:x/a",
        "data:text/plain,a",
    ],
)
def test_one_bad_link_among_good_ones_refuses_the_whole_result(link):
    with pytest.raises(HostNotAllowed):
        plan_objects([f"{STORE}/a", link, f"{STORE}/b"], rules=RULES)


# Names that leave, or confuse


CLIMBING = [
    "../x",
    "a/../../x",
    "a/..",
    "..",
    "a/./b",
    ".",
    "%2e%2e/x",
    "%2E%2e%2Fx",
    "a%2f..%2f..%2fx",
    "a/%2e%2e/x",
    "..%2fx",
    "/etc/passwd",  # two slashes: an empty component
    "%2fetc%2fpasswd",
    "a//b",
    "a/",  # a folder
    "",
    "a%00b",
    "a%5cb",
    "..%5c..%5cx",
    "a%0ab",  # would forge a line of SHA256SUMS
    "a%0d",
    "a%1b[2Jb",
    "a%7fb",
    "a%c2%85b",  # NEL, a control character
    "%ff",
    "a%c0%ae%c0%ae/x",  # an over-long form of `..`
    "a%ed%a0%80b",  # half of a surrogate pair
    "x" * 241,
    "%e5%8f%98" * 81,  # few characters, many bytes
    "a/" * 600 + "x",
]


@pytest.mark.parametrize("path", CLIMBING)
@pytest.mark.parametrize("others", [(), ("good/a", "other/b")])
def test_a_name_that_could_leave_or_confuse_is_refused(path, others):
    with pytest.raises(BadTaskResult):
        plan(*others, path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("%252e%252e%252fetc", "%2e%2e%2fetc"),  # decoded once, as the store does, it is a name
        ("..%252f..%252fx", "..%2f..%2fx"),
        ("...", "..."),
        ("a%20b+c", "a b+c"),  # in a path a plus is a plus
        ("%E5%8F%98%E5%BC%82.vcf.gz", "\u53d8\u5f02.vcf.gz"),
        ("\u53d8\u5f02.vcf.gz", "\u53d8\u5f02.vcf.gz"),
        ("-rf", "-rf"),
        ("x" * 240, "x" * 240),
        ("a%3Fb%23c", "a?b#c"),
        ("d/SHA256SUMS.part", "SHA256SUMS.part"),
    ],
)
def test_a_strange_name_that_stays_inside_is_kept_as_it_is(path, name):
    assert names(path) == [name]


def test_the_query_and_the_fragment_are_no_part_of_the_key():
    [planned] = plan("a/b.vcf.gz?Expires=1&Signature=../../x#../y")
    assert (planned.name, planned.key) == ("b.vcf.gz", "a/b.vcf.gz")
    assert planned.url.endswith("#../y")


# Places


def test_a_single_file_stands_directly_in_the_tasks_directory():
    assert names("deep/down/a.vcf.gz") == ["a.vcf.gz"]


def test_what_all_paths_share_is_left_out():
    assert names("r/t/a.vcf.gz", "r/t/a.vcf.gz.tbi") == ["a.vcf.gz", "a.vcf.gz.tbi"]


def test_two_files_of_one_name_from_two_folders_both_survive():
    """A downloader that keeps the last component alone would write one over the other."""
    assert names("r/one/a.vcf.gz", "r/two/a.vcf.gz") == ["one/a.vcf.gz", "two/a.vcf.gz"]


def test_a_folder_whose_name_begins_like_another_is_not_shared():
    assert names("ab/x", "abc/y") == ["ab/x", "abc/y"]


def test_files_from_two_buckets_are_kept_apart():
    links = [f"https://{bucket}.oss-cn-beijing.aliyuncs.com/r/a" for bucket in ("one", "two")]
    planned = plan_objects(links, rules=RULES)
    assert [(each.name, each.bucket) for each in planned] == [
        ("one/r/a", "one"),
        ("two/r/a", "two"),
    ]


def test_an_object_is_its_bucket_and_key_whatever_its_link_says():
    """A link that was signed twice, or names another way to one store, is one file."""
    links = [
        f"{STORE}/r/a?Signature=one",
        f"{STORE}/r/%61?Signature=two",
        "https://RESULTS.oss-cn-beijing.aliyuncs.com:443/r/a",
        "https://results.oss-cn-beijing.aliyuncs.com./r/a",
        "https://results.oss-cn-beijing-internal.aliyuncs.com/r/a",
    ]
    [planned] = plan_objects(links, rules=RULES)
    assert (planned.name, planned.bucket, planned.key) == ("a", "results", "r/a")
    assert planned.url == links[0]


def shared_by_component(paths):
    """Return how many leading folders all paths share, folder by folder."""
    levels = zip(*([path.split("/")[:-1] for path in paths]), strict=False)
    return sum(1 for _ in takewhile(lambda level: len({*level}) == 1, levels))


FOLDERS = st.lists(st.sampled_from(["a", "ab", "b", "a b", "\u53d8", "a.d", "Z"]), max_size=4)


@given(st.lists(FOLDERS, min_size=1, max_size=5))
def test_what_is_left_out_is_what_the_folders_share(folders):
    paths = ["/".join([*each, f"{number}.vcf.gz"]) for number, each in enumerate(folders)]
    shared = shared_by_component(paths)
    assert names(*map(quote, paths)) == ["/".join(path.split("/")[shared:]) for path in paths]


def test_the_objects_of_one_bucket_share_its_name():
    one, two = plan("r/a.vcf.gz", "r/b.vcf.gz")
    assert one.bucket is two.bucket


QUERIES = st.text("ab&=%2F?#;+\u53d8", max_size=12)


@given(st.lists(st.tuples(st.sampled_from(["r/a b", "r/a", "r/\u53d8", "b"]), QUERIES), min_size=1))
def test_every_link_is_kept_as_it_was_told(links):
    told = {path: f"{STORE}/{quote(path)}?{query}" for path, query in reversed(links)}
    told[links[0][0]] = f"{STORE}/{quote(links[0][0])}"
    planned = plan_objects(list(told.values()), rules=RULES)
    assert [one.url for one in planned] == list(told.values())


def test_what_thousands_of_links_share_is_kept_once():
    """A session's token is longer than all the rest of a link."""
    query = "?Expires=1&security-token=abc&Signature="
    links = [f"{STORE}/r/{name}{query}{name}" for name in ("a.vcf.gz", "b.vcf.gz")]
    one, two = plan_objects(links, rules=RULES)
    assert (one.url, two.url) == (*links,)
    assert sum(mine is its for mine, its in zip(one.link, two.link, strict=True)) == 3
    assert one.key in one.link


def test_objects_come_in_the_order_of_the_result():
    assert names("r/b", "r/a", "r/b", "r/c") == ["b", "a", "c"]


@pytest.mark.parametrize(
    "paths",
    [
        ("r/a", "r/a/b"),  # a file and a folder of one name
        ("r/a/b", "r/a"),
        ("r/x", "r/x.part"),  # the second is where the first one's bytes arrive
        ("r/x.part", "r/x"),
        ("r/x", "r/x.part/y"),
        ("r/d/x", "r/d/x.part/y/z", "r/e"),
        *((f"r/{name}",) for name in RESERVED_NAMES),
        *((f"r/{name}/x", "r/y") for name in RESERVED_NAMES),
    ],
)
def test_two_files_never_need_one_place(paths):
    with pytest.raises(BadTaskResult, match="place is needed"):
        plan(*paths)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("r/d/SHA256SUMS", "r/x"), ["d/SHA256SUMS", "x"]),  # ours stands at the top only
        (("r/x.part", "r/y"), ["x.part", "y"]),
        (("r/a", "r/ab"), ["a", "ab"]),
        (("r/A", "r/a"), ["A", "a"]),
    ],
)
def test_names_that_are_merely_alike_are_no_collision(paths, expected):
    assert names(*paths) == expected


components = st.sampled_from(
    ["a", "b", "a.part", "..", ".", "", "%2e%2e", "%2e%2e%2f", "%252e%252e", "..%5c", "%00", "%ff"]
) | st.text(max_size=6).map(lambda text: quote(text, safe="/\\", errors="surrogatepass"))
links = st.lists(components, max_size=5).map(lambda parts: f"{STORE}/" + "/".join(parts))
results = st.lists(links | st.text(max_size=20) | st.none(), max_size=4) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@settings(max_examples=300)
@given(result=results)
@example(result=[f"{STORE}/a", f"{STORE}/a.part/b"])
def test_no_result_leaves_the_tasks_directory_and_no_other_error_comes_out(result):
    try:
        planned = plan_objects(result, rules=RULES)
    except DownloaderError:
        return
    places = [PurePosixPath("/dest/task", each.name) for each in planned]
    for each, place in zip(planned, places, strict=True):
        assert place.is_relative_to("/dest/task")
        assert place != PurePosixPath("/dest/task")
        assert place.as_posix() == f"/dest/task/{each.name}"
        assert not {"..", ".", ""} & set(each.name.split("/"))
        assert each.name.isprintable() or all(ord(character) >= 0x20 for character in each.name)
        each.name.encode()
    parts = [place.with_name(f"{place.name}.part") for place in places]
    everything = [*places, *parts]
    assert len(set(everything)) == len(everything)
    assert not {parent for place in everything for parent in place.parents} & set(everything)
