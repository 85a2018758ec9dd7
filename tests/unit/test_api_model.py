import copy
import json
import pickle

import pytest

from downloader.api import Model

CONTENT = {"total": 1, "result": [{"user_id": "0…1", "deep": {"a": [[{"b": None}]]}}], "items": 3}


def test_keys_are_attributes_all_the_way_down():
    model = Model(CONTENT)
    assert model.total == model["total"] == 1
    assert model.result[0].deep.a[0][0].b is None


def test_it_prints_as_the_vendors_document_shows():
    assert str(Model({"total": 22})) == repr(Model({"total": 22})) == "Model({'total': 22})"
    nested = Model({"result": [{"user_id": "0…1"}]})
    assert str(nested) == "Model({'result': [Model({'user_id': '0…1'})]})"


def test_its_json_is_plain_and_the_same():
    plain = Model(CONTENT).json()
    assert plain == CONTENT
    assert type(plain["result"][0]["deep"]["a"][0][0]) is dict


def test_dumps_leaves_chinese_readable_unless_told_otherwise():
    model = Model({"comment": "低深度全基因组"})
    assert model.dumps() == '{"comment": "低深度全基因组"}'
    assert "\\u4f4e" in model.dumps(ensure_ascii=True)
    assert model.dumps(indent=4).startswith('{\n    "comment"')


def test_a_key_that_is_a_methods_name_is_reached_by_index():
    model = Model(CONTENT)
    assert model["items"] == 3
    assert dict(model.items())["items"] == 3
    with pytest.raises(AttributeError, match="index"):
        model.items = 4


def test_an_absent_key_is_an_attribute_error():
    """What copy, pickle and notebooks probe for must look absent, not broken."""
    model = Model(CONTENT)
    assert not hasattr(model, "_repr_html_")
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = model.nothing
    with pytest.raises(AttributeError, match="'nothing'"):
        del model.nothing


@pytest.mark.parametrize(
    "twin",
    [copy.copy, copy.deepcopy, Model.copy, lambda model: pickle.loads(pickle.dumps(model))],
)
def test_copies_are_equal_models(twin):
    model = Model(CONTENT)
    assert twin(model) == model == CONTENT
    assert isinstance(twin(model).result[0], Model)


def test_what_is_put_in_later_is_wrapped_as_well():
    model = Model(a={"b": 1})
    model.c = {"d": 2}
    model.update({"e": {"f": 3}})
    model |= {"g": {"h": 4}}
    assert (model.a.b, model.c.d, model.e.f, model.g.h) == (1, 2, 3, 4)
    assert model.setdefault("i", {"j": 5}).j == 5
    assert model.setdefault("i").j == 5
    del model.i
    assert "i" not in model


def test_it_is_a_dictionary_to_everybody_else():
    assert json.dumps(Model(CONTENT)) == json.dumps(CONTENT)
    assert "total" in dir(Model(CONTENT))
