"""Recipes and overrides: what is read, and the one sentence that every mistake gets."""

import pytest

from nlrl.config import RunConfig, keys, load_config, parse_override, recipes
from nlrl.errors import ConfigError, UnknownNameError


def test_every_recipe_in_the_repository_loads():
    assert "maze" in recipes()
    for name in recipes():
        assert load_config(name).recipe == name


def test_overrides_reach_the_same_tree_and_are_read_as_toml():
    overrides = dict(parse_override(text) for text in ("env.map=umaze", "look_ahead.variations=4", "baseline=false"))
    config = load_config("maze", overrides)
    assert (config.env.map, config.look_ahead.variations, config.baseline) == ("umaze", 4, False)
    assert config.look_ahead.steps == load_config("maze").look_ahead.steps


def test_a_recipe_is_data_and_goes_through_json_unchanged():
    config = load_config("maze")
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("env.mpa=umaze", "Did you mean 'env.map'"),
        ("nonsense=1", "known: baseline, "),
        ("env.map.deeper=1", "Unknown recipe key 'env.map.deeper'"),
        ("look_ahead.variations=0", "look_ahead.variations = 0 cannot be used"),
        ("look_ahead.rollout=oracle", "look_ahead.rollout = 'oracle' cannot be used"),
        ("env=3", "cannot be used|Unknown recipe key 'env'"),
    ],
)
def test_a_mistake_is_one_sentence(override, says):
    with pytest.raises(ConfigError, match=says):
        load_config("maze", dict([parse_override(override)]))


def test_an_unknown_recipe_lists_the_known_ones(tmp_path):
    with pytest.raises(UnknownNameError, match=r"Unknown recipe .labyrinth.; known: .*maze"):
        load_config("labyrinth")
    broken = tmp_path / "broken.toml"
    broken.write_text("[env\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(str(broken))
    with pytest.raises(ConfigError, match="write key=value"):
        parse_override("env.map")


def test_keys_are_the_tree():
    assert {"seed", "env.map", "engine.backbone", "look_ahead.combine"} <= set(keys())
