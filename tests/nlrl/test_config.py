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
    assert (config.env.map, config.look_ahead.variations, config.baseline) == ("umaze", 4, ())
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
        ("env.opponent=stockfish", "env.opponent = 'stockfish' cannot be used: known are pool, random, first"),
        ("env.opponent=mcts:sims=0", "env.opponent = 'mcts:sims=0' cannot be used"),
        ("loop=sarsa", "loop = 'sarsa' cannot be used"),
        ("roles.judge.kind=http", "Unknown role 'judge'; known: policy, teacher, value"),
        ("roles.teacher.url=http://x", "Unknown recipe key 'roles.teacher.url'.*Did you mean 'roles"),
        ("roles.teacher=hymba", "Unknown recipe key 'roles.teacher'"),
        ("training.games=0", "training.games = 0 cannot be used"),
        ("training.gmaes=5", "Did you mean 'training.games'"),
        ("distil.loss=sum", "distil.loss = 'sum' cannot be used"),
        ('baseline=["ppo2"]', "baseline = 'ppo2' cannot be used"),
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


def test_a_role_with_an_address_asks_a_server_and_the_others_the_runs_engine():
    config = load_config("maze", {"roles.teacher.base_url": "http://127.0.0.1:1/v1"})
    assert config.roles.teacher is not None
    assert (config.roles.teacher.kind, config.roles.policy, config.engine.kind) == ("http", None, "vllm")
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("written", "read"),
    [("mcts:sims=1000,rollouts=10", "mcts:1000:10"), ("mcts:sims=50", "mcts:50"), ("mcts", "mcts"), ("pool", "pool")],
)
def test_opponents_may_name_their_knobs(written, read):
    assert load_config("maze", dict([parse_override(f"env.opponent={written}")])).env.opponent == read


def test_a_game_has_options_of_its_own():
    assert load_config("maze", {"env.options.horizon": 9}).env.options == {"horizon": 9}


def test_only_a_recipe_with_a_distil_table_trains_by_policy_iteration():
    assert not load_config("maze").learns
    assert load_config("maze", {"distil.epochs": 1}).learns


@pytest.mark.parametrize("wrong", ["sk-canary-0123456789", "SK0123456789CANARY", "canary", "9_API_KEY", ""])
def test_a_key_where_its_variables_name_belongs_is_refused_without_showing_it(wrong):
    key, says = "roles.value.api_key_env", r"^roles\.value\.api_key_env cannot be used: .* never the key itself"
    value = load_config("maze", {key: "VALUE_API_KEY"}).roles.value
    assert value is not None
    assert value.api_key_env == "VALUE_API_KEY"
    with pytest.raises(ConfigError, match=says) as refused:
        load_config("maze", {key: wrong})
    assert refused.value.__cause__ is None
    assert not wrong or wrong not in str(refused.value)
