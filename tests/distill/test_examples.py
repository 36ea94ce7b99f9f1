"""Examples are the very questions that the student is asked, with the teacher's very replies; and replies fit."""

import asyncio
from dataclasses import replace

import pytest

from nlrl.ask import Asker
from nlrl.distill.examples import policy_examples, value_examples
from nlrl.distill.forms import check_teachable, sample_replies
from nlrl.engine.base import Completion
from nlrl.engine.oracle import OracleEngine
from nlrl.errors import ConfigError
from nlrl.policy import act
from nlrl.types import CallId, Evaluation, ImprovedPolicy, LanguageValue, LookAhead, Situation
from nlrl.values.direct import language_values
from nlrl_prompts import PromptSet, Reply, available, load

MOVES = {
    "maze": ("move up", "move left"),
    "tic_tac_toe": ("1", "9"),
    "connect_four": ("1", "7"),
    "breakthrough": ("a2b3", "e2e3"),
    "frozen_lake": ("left", "up"),
}
TAUGHT = {
    "compact": ("Of 5 games won 3, drew 1, lost 1. Worth 0.40.", "Most worth is 0.40 after 5."),
    "full": ('{"thoughts": "t", "evaluation": "e", "worth": 0.4}', '{"thought": "Five.", "action": "5"}'),
    "arithmetic": ("0.4", "0.4: 5"),
}
HERE = Situation(("1 | 2 | 3\nX is to move.\n",), CallId(7, 3, "policy"), ("5", "6"), "X")


class Listening(OracleEngine):
    """Keeps the requests and answers nothing that could be used."""

    def __init__(self):
        super().__init__({})
        self.requests = []

    async def generate(self, requests):
        self.requests += requests
        return [Completion("?") for _ in requests]


def form_of(prompts, role):
    form = prompts[role].reply
    assert form is not None
    return form


def asked(prompt_set, call):
    engine = Listening()
    ask = Asker(engine, load(prompt_set, "tic_tac_toe"), "Three in a row wins.", player="X", attempts=1)
    asyncio.run(call(ask))
    (request,) = engine.requests
    return ask, tuple((message.role, message.content) for message in request.messages)


def evaluation(reply, action, **more):
    games = (LookAhead((), (), (), game=11), LookAhead((), (), (), game=2), LookAhead((), (), ()))
    return Evaluation(HERE, action, LanguageValue(reply, 0.4), games, reply, token_ids=(4, 5), **more)


@pytest.mark.parametrize("prompt_set", available())
@pytest.mark.parametrize("action", [None, "5"])
def test_a_value_example_is_the_question_that_is_asked(prompt_set, action):
    ask, messages = asked(prompt_set, lambda ask: language_values([(HERE, action)], ask=ask))
    reply = TAUGHT[prompt_set][0]
    (example,) = value_examples([evaluation(reply, action)], ask=ask, iteration=2)
    assert example.messages == messages
    assert (example.role, example.target, example.target_token_ids) == ("value", reply, (4, 5))
    assert example.sources == (2, 7, 11)


@pytest.mark.parametrize("prompt_set", available())
def test_a_policy_example_is_the_question_that_is_asked(prompt_set):
    ask, messages = asked(prompt_set, lambda ask: act(ask, HERE.history, HERE.actions, HERE.call))
    choice = ImprovedPolicy("5", TAUGHT[prompt_set][1], token_ids=(9,))
    other = replace(HERE, call=replace(HERE.call, step=4))
    (example,) = policy_examples([HERE, other], [choice, None], ask=ask, iteration=1)
    assert example.messages == messages
    assert (example.role, example.target, example.target_token_ids) == ("policy", choice.thought, (9,))
    assert example.sources == (7,)


def test_names_are_unique_and_what_no_model_said_is_not_taught():
    ask = Asker(Listening(), load("compact", "tic_tac_toe"), "", player="X")
    reply = TAUGHT["compact"][0]
    end = Evaluation(HERE, "6", LanguageValue("The game is over. Worth 0.00.", 0.0, "terminal"))
    made = value_examples([*[evaluation(reply, "5")] * 2, evaluation(reply, None), end], ask=ask, iteration=3)
    assert [one.id for one in made] == ["3/value/7/3/5/0", "3/value/7/3/5/1", "3/value/7/3//0"]


def test_a_reply_of_another_form_is_one_sentence():
    ask = Asker(Listening(), load("full", "tic_tac_toe"), "", player="X")
    with pytest.raises(ConfigError, match=r"reply 'Of 5 games .*' cannot be taught: .*; give both one prompt set\.$"):
        value_examples([evaluation(TAUGHT["compact"][0], "5")], ask=ask, iteration=1)


@pytest.mark.parametrize("prompt_set", available())
@pytest.mark.parametrize("game", MOVES)
@pytest.mark.parametrize("student", ["value", "policy"])
def test_in_every_set_and_game_a_student_may_say_what_its_teacher_says(prompt_set, game, student):
    prompts = load(prompt_set, game)
    check_teachable(student, prompts, prompts, actions=MOVES[game])


def test_a_teacher_of_another_set_is_refused_before_anything_is_asked():
    compact, full = load("compact", "maze"), load("full", "maze")
    with pytest.raises(
        ConfigError, match=r"^The value student could not say '\{\"thoughts\".* as 'monte_carlo': in .*"
    ):
        check_teachable("value", compact, full, actions=MOVES["maze"])
    policy = replace(full["policy"], reply=replace(form_of(full, "policy"), max_tokens=96))
    with pytest.raises(ConfigError, match=r"The policy student may say 96 tokens, its teacher 512 as 'improve': raise"):
        check_teachable("policy", PromptSet("own", "x", {"policy": policy}), full, actions=MOVES["maze"])


def test_a_single_alternative_that_the_student_lacks_is_found():
    own, taught = r"(won \d|lost \d)\. (?P<number>0\.\d)", r"(won \d|lost \d|drew \d{1,2})\. (?P<number>0\.\d)"
    prompts = load("compact", "tic_tac_toe").prompts

    def with_form(role, pattern):
        return PromptSet("own", "x", {**prompts, role: replace(prompts[role], reply=Reply("regex", pattern))})

    with pytest.raises(ConfigError, match=r"could not say 'drew 0\. 0\.0'"):
        check_teachable("value", with_form("value", own), with_form("blend", taught), actions=("1",), roles=("blend",))
    check_teachable("value", with_form("value", taught), with_form("blend", own), actions=("1",), roles=("blend",))


def test_samples_take_every_alternative_and_both_ends():
    form = Reply("regex", r"(?P<thought>[^:\n]{1,3})(:| after) (?P<action>{actions})\.")
    assert sample_replies(form, ("up", "left")) == ["a: left.", "aaa: left.", "a after left.", "a: up."]
    form = Reply("json", schema='{"properties": {"n": {"type": "number", "minimum": -1, "maximum": 1}}}')
    assert sample_replies(form, ()) == ['{"n": -1}', '{"n": 1}']
