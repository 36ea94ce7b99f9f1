"""Every prompt set in the box keeps the contract, and the contract notices what breaks it."""

import json
import shutil

import pytest

from nlrl_envs import ENVS
from nlrl_prompts import ROOT, PromptSetError, Reply, available, constraint_pattern, fill_schema, load, quotes
from nlrl_prompts.check import check_prompts
from nlrl_prompts.roles import TEMPLATES


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("name", available())
def test_every_set_in_the_box_is_complete_and_consistent_for_every_game(name, env):
    check_prompts(name, env)
    assert load(name, env).prompts.keys() == TEMPLATES.keys()


@pytest.mark.parametrize("name", available())
def test_every_set_in_the_box_serves_games_it_does_not_know(name):
    check_prompts(name, "chess")


@pytest.mark.parametrize("env", ENVS)
def test_the_longest_reply_that_a_full_form_admits_fits_its_tokens(env):
    """At a character a token, which a small model that counts or repeats digits comes to; else replies are cut."""
    for name, prompt in load("full", env).prompts.items():
        if prompt.reply is None:
            continue
        properties = json.loads(fill_schema(prompt.reply, ("column 7",)))["properties"]
        longest = {
            key: "x" * form["maxLength"] if "maxLength" in form else "column 7" if "enum" in form else -100000.123456
            for key, form in properties.items()
        }
        assert all({"maxLength", "enum", "minimum"} & form.keys() for form in properties.values()), name
        assert len(json.dumps(longest)) < prompt.reply.max_tokens, name


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(ROOT / "full", tmp_path / "full")
    return tmp_path


def test_a_changed_text_changes_the_hash(copied):
    before = load("full", "chess", copied).sha256
    path = copied / "full" / "_shared" / "value.md"
    path.write_text(path.read_text().replace("evaluate", "judge"))
    load.cache_clear()
    assert load("full", "chess", copied).sha256 != before


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        (
            "value.md",
            "$history",
            "$hystery",
            r"uses \$hystery, which that role does not have; it has: action, actions, history",
        ),
        ("improve.md", "$candidates", "", r"does not use \$candidates"),
        ("replies.toml", 'number = "worth"', 'number = "price"', "has no property for 'number'"),
        ("replies.toml", "[combine]", "[combined]", "does not describe the reply to 'combine'"),
        ("replies.toml", "[blend]", "[blends]", "does not describe the reply to 'blend'"),
        ("replies.toml", "[blend]", "[terminal]\nkind = 'regex'\n[blend]", "describes a reply to 'terminal', which"),
        ("replies.toml", "max_tokens", "most_tokens", "most_tokens"),
        ("replies.toml", "[blend]", "[blend", "replies.toml of prompt set 'full' is not TOML"),
    ],
)
def test_a_broken_set_is_one_sentence(copied, file, old, new, says):
    path = copied / "full" / "_shared" / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(PromptSetError, match=says):
        check_prompts("full", "chess", copied)


def test_a_file_that_is_no_template_is_one_sentence(copied):
    (copied / "full" / "maze" / "polcy.md").write_text("$history")
    with pytest.raises(PromptSetError, match=r"full/maze/polcy\.md is no template; there are: aggregate, blend"):
        load("full", "maze", copied)


def test_a_variable_that_is_not_given_is_one_sentence():
    with pytest.raises(PromptSetError, match=r"value\.md shows \$player, which it was not given"):
        load("full", "tic_tac_toe")["value"].render(history="1 | 2 | 3", task="Win.")


def test_a_missing_set_lists_those_there_are():
    with pytest.raises(PromptSetError, match="known: arithmetic, compact, full"):
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
