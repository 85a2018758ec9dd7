import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.api.signing import sign, string_to_sign

VECTORS = json.loads((Path(__file__).parent / "data" / "sign_vectors.json").read_text("utf-8"))


@pytest.mark.parametrize("vector", VECTORS)
def test_the_signature_is_the_one_of_the_vendors_code(vector):
    assert string_to_sign(vector["params"]) == vector["string_to_sign"]
    assert sign(vector["params"], vector["app_secret"]) == vector["sign"]


def test_the_signature_itself_and_absent_values_take_no_part():
    plain = {"task_id": "t", "empty": ""}
    assert string_to_sign({**plain, "sign": "x", "limit": None}) == string_to_sign(plain)


def test_values_count_as_their_text():
    assert string_to_sign({"a": True, "b": 1.5}) == string_to_sign({"a": "True", "b": "1.5"})


@given(st.dictionaries(st.text(min_size=1), st.text()), st.randoms())
def test_the_order_of_the_parameters_does_not_matter(params, random):
    """Any text can be signed, too: none of it raises."""
    try:
        "".join([*params, *params.values()]).encode()
    except UnicodeEncodeError:
        return  # lone surrogates cannot travel, and are refused before
    shuffled = list(params.items())
    random.shuffle(shuffled)
    assert sign(dict(shuffled), "s") == sign(params, "s")
