"""Every prompt set in the box keeps the contract, and the contract notices what breaks it."""

import shutil

import pytest

from nlrl_prompts import ROOT, PromptSetError, Reply, available, constraint_pattern, fill_schema, load, quotes
from nlrl_prompts.check import check_prompts


@pytest.mark.parametrize("name", available())
def test_every_set_in_the_box_is_complete_and_consistent(name):
    check_prompts(name, "maze")
    assert len(load(name, "maze").sha256) == 64


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(ROOT / "default", tmp_path / "default")
    return tmp_path


def test_a_changed_text_changes_the_hash(copied):
    before = load("default", "maze", copied).sha256
    path = copied / "default" / "_shared" / "value.md"
    path.write_text(path.read_text().replace("evaluate", "judge"))
    load.cache_clear()
    assert load("default", "maze", copied).sha256 != before


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        (
            "value.md",
            "$history",
            "$hystery",
            r"uses \$hystery, which that role does not have; it has: actions, history",
        ),
        ("improve.md", "$candidates", "", r"does not use \$candidates"),
        ("replies.toml", 'number = "worth"', 'number = "price"', "has no property for 'number'"),
        ("replies.toml", "[combine]", "[combined]", "does not describe the reply to 'combine'"),
        ("replies.toml", "max_tokens", "most_tokens", "most_tokens"),
    ],
)
def test_a_broken_set_is_one_sentence(copied, file, old, new, says):
    path = copied / "default" / "_shared" / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(PromptSetError, match=says):
        check_prompts("default", "maze", copied)


def test_a_missing_set_lists_those_there_are():
    with pytest.raises(PromptSetError, match="known: arithmetic, compact, default"):
        load("long", "maze")


def test_awkward_actions_are_filled_in_literally():
    form = Reply("regex", pattern=r"(?P<action>{actions})!")
    assert constraint_pattern(form, ("a.b", "a.b*")) == r"(a\.b\*|a\.b)!"
    schema = Reply("json", schema='{"enum": ["{actions}"]}')
    assert fill_schema(schema, ('say "x"', "b")) == '{"enum": ["say \\"x\\"", "b"]}'


def test_quotes_are_the_candidates_as_they_were_shown():
    form = load("compact", "maze")["improve"].reply
    assert form is not None
    assert quotes(form, [("move up", -8.5), ("move left", -0.0)]) == (
        "Most worth is -8.5 after move up.",
        "Most worth is -0.0 after move left.",
    )
    assert quotes(form, [("move up", None)]) == ()
