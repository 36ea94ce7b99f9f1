"""Every worked example of the full set: strict JSON, of the form, legal where it is said to be, and right in its sums.

An example shows a position that the game really reaches. What it says was played is played here, on ice that does not
slip, and rewards, endings and the number in the reply must be what comes of it.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from nlrl.ask import history_text
from nlrl.parse import parse_reply
from nlrl_envs import ENVS
from nlrl_envs.base import SeatedEnv, TextEnv, rewards_of, seat_of
from nlrl_envs.breakthrough import Breakthrough
from nlrl_envs.connect_four import ConnectFour
from nlrl_envs.frozen_lake import FrozenLakeText
from nlrl_envs.maze import MazeText
from nlrl_envs.tic_tac_toe import TicTacToe
from nlrl_prompts import ROOT, Prompt, Reply, fill_schema, load
from nlrl_prompts.roles import TEMPLATES

SPEAKING = [name for name, template in TEMPLATES.items() if template.replies]
EXAMPLE = re.compile(r"\n\nExample:\n(.*?)\nReply:\n(\{[^\n]*\})(?=\n\nExample:|$)", re.DOTALL)


@dataclass(frozen=True)
class Shown:
    """The position that a game's examples show, how it is reached, and how an evaluation states its worth in words."""

    make: Callable[[], TextEnv]
    moves: tuple[str, ...]
    sentence: str
    worth: Callable[[re.Match[str]], float]


def surplus(said: re.Match[str]) -> float:
    return (float(said["won"]) - float(said["lost"])) / 100


CHANCES = r"(?P<who>\w+) wins (?P<won>\d+) of 100 games and loses (?P<lost>\d+)\."
SHOWN = {
    "tic_tac_toe": Shown(TicTacToe, ("1", "5", "9"), CHANCES, surplus),
    "connect_four": Shown(ConnectFour, ("4", "4", "3", "3"), CHANCES, surplus),
    "breakthrough": Shown(Breakthrough, ("e4d3", "c2d3*", "b4c3"), CHANCES, surplus),
    "frozen_lake": Shown(
        lambda: FrozenLakeText("random:605", slippery=False),
        (),
        r"The goal is reached in (?P<reached>\d+) of 100 games\.",
        lambda said: float(said["reached"]) / 100,
    ),
    "maze": Shown(
        lambda: MazeText("random:12:7x7"),
        ("move down",),
        r"About (?P<points>\d+(\.\d)?) points are lost\.",
        lambda said: -float(said["points"]),
    ),
}


@dataclass(frozen=True)
class Case:
    """One worked example: what is shown after the position, and the reply."""

    env: TextEnv
    prompt: Prompt
    evidence: str
    reply: str

    @property
    def form(self) -> Reply:
        assert self.prompt.reply is not None
        return self.prompt.reply


def position(game: str) -> tuple[TextEnv, str]:
    """The game where its examples show it, and the text they show: boards say all, in a maze the way counts."""
    env = SHOWN[game].make()
    record = [env.observation]
    for move in SHOWN[game].moves:
        assert move in env.legal_actions
        env.step(move)
        record += [move, env.observation]
    return env, history_text(tuple(record if game == "maze" else record[-1:]))


def cases(game: str, role: str) -> list[Case]:
    prompt = load("full", game)[role]
    assert prompt.system is not None
    env, shown = position(game)
    found = EXAMPLE.findall(prompt.system)
    assert prompt.system.count("\nReply:\n") == len(found) == (2 if role == "value" else 1)
    for before, _ in found:
        assert before == shown or before.startswith(shown + "\n"), f"{game}/{role}.md shows another position"
    return [Case(env, prompt, before.removeprefix(shown).removeprefix("\n"), reply) for before, reply in found]


def strict(text: str) -> dict:
    """JSON without the liberties that Python's reader takes."""

    def once(pairs: list) -> dict:
        assert len(dict(pairs)) == len(pairs), "a property stands twice"
        return dict(pairs)

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, object_pairs_hook=once, parse_constant=refuse)


def lines(template: str, text: str) -> list[dict[str, str]]:
    """The variables of each line of `text` that has the form of a template's text."""
    pattern = re.sub(r"\\\$(\w+)", r"(?P<\1>.*)", re.escape(template))
    return [m.groupdict() for m in re.finditer(f"^{pattern}$", text, re.MULTILINE)]


def played(env: TextEnv, moves: str) -> tuple[TextEnv, float]:
    """The game after these moves, and what they brought the player who was to move before them."""
    seat, after, reward = seat_of(env), env.clone(), 0.0
    for move in moves.split(", "):
        assert move in after.legal_actions, f"{move} is not legal after {moves}"
        reward += rewards_of(after.step(move))[seat]
    return after, reward


def worth_in(game: str, text: str, env: TextEnv) -> float:
    """The worth that an evaluation states in its last sentence, which speaks of the player who is to move."""
    said = re.search(SHOWN[game].sentence + "$", text)
    assert said, f"'{text}' does not end in the sentence"
    assert "who" not in said.groupdict() or said["who"] == env.seats[env.seat]  # type: ignore[attr-defined]
    return SHOWN[game].worth(said)


def of_way(game: str, env: TextEnv, moves: str, reward: str, end: str) -> float:
    """Reward plus worth of a way, after it was found to be just what it is said to be."""
    after, total = played(env, moves)
    assert float(reward) == total
    if after.terminal_text is None:
        return total + worth_in(game, end, env)
    assert end == load("full", game)["terminal"].render(terminal_text=after.terminal_text)
    return total


@pytest.mark.parametrize("role", SPEAKING)
@pytest.mark.parametrize("game", ENVS)
def test_examples_are_strict_json_of_the_form_that_is_asked_for(game, role):
    for case in cases(game, role):
        said = strict(case.reply)
        schema = json.loads(fill_schema(case.form, case.env.legal_actions))
        assert list(said) == schema["required"] == list(schema["properties"])
        parsed = parse_reply(case.reply, case.form, case.env.legal_actions)
        if "worth" in said:
            assert parsed.number == said["worth"] == pytest.approx(worth_in(game, said["evaluation"], case.env))
            quoted = re.search(r'in just this form: "([^"]+)"', case.prompt.system or "")
            assert quoted
            assert re.fullmatch(SHOWN[game].sentence, quoted[1])
        else:
            assert said["action"] in case.env.legal_actions
            assert parsed.action == said["action"]


@pytest.mark.parametrize("role", SPEAKING)
@pytest.mark.parametrize("game", ENVS)
def test_engines_that_constrain_replies_can_write_the_examples(game, role):
    pytest.importorskip("xgrammar")
    from xgrammar import Grammar
    from xgrammar.testing import _is_grammar_accept_string

    for case in cases(game, role):
        grammar = Grammar.from_json_schema(fill_schema(case.form, case.env.legal_actions), any_whitespace=False)
        assert _is_grammar_accept_string(grammar, case.reply)
        assert not _is_grammar_accept_string(grammar, case.reply.replace('": "', '": ', 1))


def test_no_prompt_holds_an_object_that_is_not_an_example():
    found = {path: path.read_text().count("\n{") for path in (ROOT / "full").rglob("*.md")}
    expected = {ROOT / "full" / g / f"{role}.md": 1 + (role == "value") for g in ENVS for role in SPEAKING}
    assert {path: count for path, count in found.items() if count} == expected


@pytest.mark.parametrize("game", ENVS)
def test_policies_and_values_are_shown_legal_moves(game):
    (policy,) = cases(game, "policy")
    assert policy.evidence == f"Legal moves: {', '.join(policy.env.legal_actions)}"
    of_state, of_move = cases(game, "value")
    judged = [f"Judge for: {e.seats[e.seat]}"] if isinstance(e := of_state.env, SeatedEnv) else []
    assert of_state.evidence == "\n".join(judged)
    move, *rest = of_move.evidence.split("\n")
    assert move in of_move.env.legal_actions
    assert rest == judged


@pytest.mark.parametrize("game", ENVS)
def test_combining_adds_reward_and_worth(game):
    (case,) = cases(game, "combine")
    template = case.prompt.user[case.prompt.user.index("The piece:") :]
    (piece,) = lines(template, case.evidence)
    expected = of_way(game, case.env, piece["moves"], piece["reward"], piece["evaluation"])
    assert strict(case.reply)["worth"] == pytest.approx(expected)


@pytest.mark.parametrize("game", ENVS)
def test_aggregating_is_the_mean_over_ways_that_can_be_played(game):
    (case,) = cases(game, "aggregate")
    ways = lines(load("full", game)["look"].user, case.evidence)
    assert len(ways) == len(case.evidence.split("\n")) == 2
    assert len({way["moves"].split(", ")[0] for way in ways}) == 1
    worths = [of_way(game, case.env, way["moves"], way["reward"], way["evaluation"]) for way in ways]
    assert strict(case.reply)["worth"] == pytest.approx(sum(worths) / 2)


@pytest.mark.parametrize("game", ENVS)
def test_monte_carlo_is_the_mean_return_of_games_that_end_as_they_say(game):
    (case,) = cases(game, "monte_carlo")
    games = lines(load("full", game)["game"].user, case.evidence)
    assert len(games) == len(case.evidence.split("\n")) >= 2
    returns = []
    for one in games:
        after, total = played(case.env, one["moves"])
        assert (one["ending"], float(one["reward"])) == (after.terminal_text, total)
        returns.append(total)
    assert strict(case.reply)["worth"] == pytest.approx(sum(returns) / len(returns))


@pytest.mark.parametrize("game", ENVS)
def test_blending_is_the_weighted_sum(game):
    (case,) = cases(game, "blend")
    views = lines(load("full", game)["estimate"].user, case.evidence)
    assert len(views) == len(case.evidence.split("\n")) == 2
    assert sum(float(view["weight"]) for view in views) == 1
    expected = sum(float(v["weight"]) * worth_in(game, v["evaluation"], case.env) for v in views)
    assert strict(case.reply)["worth"] == pytest.approx(expected)


@pytest.mark.parametrize("game", ENVS)
def test_improvement_chooses_the_move_that_is_said_to_be_worth_most(game):
    (case,) = cases(game, "improve")
    candidates = lines(load("full", game)["candidate"].user, case.evidence)
    worth_A = {c["action"]: worth_in(game, c["evaluation"], case.env) for c in candidates}
    assert len(worth_A) == len(case.evidence.split("\n")) == 3
    assert worth_A.keys() <= set(case.env.legal_actions)
    assert strict(case.reply)["action"] == max(worth_A, key=worth_A.__getitem__)
