"""python -m nlrl.baselines: what cannot be done is said in a sentence before anything is loaded."""

import pytest
from typer.testing import CliRunner

from nlrl.baselines.__main__ import app
from nlrl.errors import EnvError, UnknownNameError


@pytest.mark.parametrize("command", ["ppo", "grpo"])
@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        (["--opponent", "nobody"], EnvError, "Unknown opponent 'nobody'; known: random"),
        (["--game", "chess"], UnknownNameError, "Unknown env 'chess'"),
        (["--game", "maze", "--map", "nowhere"], EnvError, "nowhere"),
        (["--game", "breakthrough", "--map", "9x9"], EnvError, "9x9"),
    ],
)
def test_bad_input_is_one_sentence(command, options, kind, sentence):
    result = CliRunner().invoke(app, [command, *options])
    assert isinstance(result.exception, kind)
    assert sentence in str(result.exception)
