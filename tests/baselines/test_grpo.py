"""GRPO through TRL's trainer: what a reply earns, and that a tiny model learns from it."""

import numpy as np
import pytest
import torch
from tiny_tokenizer import save_tokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from nlrl.ask import Asker
from nlrl.baselines.grpo import GrpoKnobs, PlayedOn, play_on, random_roots, train_grpo
from nlrl.baselines.loading import load_learner
from nlrl.engine.local import encode_messages
from nlrl.engine.oracle import OracleEngine
from nlrl.policy import policy_question
from nlrl_envs.frozen_lake import FrozenLakeText
from nlrl_envs.maze import MazeText
from nlrl_envs.opponents import first_legal, uniform_random
from nlrl_envs.tic_tac_toe import TicTacToe
from nlrl_prompts import load


def asker(env, game="tic_tac_toe"):
    return Asker(OracleEngine({}), load("compact", game), env.task)


def after(moves):
    game = TicTacToe()
    for move in moves:
        game.step(move)
    return game


def rngs(count):
    return [np.random.default_rng(i) for i in range(count)]


def test_a_move_earns_what_follows_from_it():
    # O holds 1 and 2, X 4 and 5: 3 wins at once; after 9 X takes 3, O 6, and X completes 3, 5, 7.
    begun = [(after("1425"), "3"), (after("1425"), "9"), (after("1425"), None)]
    assert play_on(begun, first_legal, first_legal, rngs(3)) == [1.0, -1.0, -1.0]
    # Both seats are gone on with by one player where there is no opponent.
    assert play_on([(after("1425"), "9")], first_legal, None, rngs(1)) == [-1.0]
    lake = FrozenLakeText("random:605", slippery=False)
    assert play_on([(lake.clone(), None)], first_legal, None, rngs(1)) == [-1.0]


def test_play_on_is_the_return_of_who_was_asked():
    values = play_on([(after("1"), "5") for _ in range(200)], uniform_random, uniform_random, rngs(200))
    assert set(values) == {-1.0, 0.0, 1.0}
    # X holds the centre against random play: exactly even would be 0, the corner opening costs it a little.
    assert -0.4 < np.mean(values) < 0.4


def test_replies_are_read_strictly_and_seeds_decide():
    env = TicTacToe()
    roots = random_roots(env, first_legal, 6, seed=0)
    assert len({situation.key for _, situation in roots}) == 6
    made = [PlayedOn(env, roots, asker(env), first_legal, seed=seed) for seed in (0, 0)]
    replies = [f"No view yet: {situation.actions[0]}." for _, situation in roots] + ["I move somewhere.", "Hm: 0."]
    numbers = [*range(6), 0, 1]
    rewards = [one(prompts=[""] * 8, completions=replies, root=numbers) for one in made]
    assert rewards[0] == rewards[1]
    assert rewards[0][6:] == [-1.0, -1.0]
    assert made[0].failures == {"": 6, "format": 2}
    chat = [[{"role": "assistant", "content": reply}] for reply in replies]
    assert made[0](prompts=[""] * 8, completions=chat, root=numbers)[6:] == [-1.0, -1.0]


def speaker(tokenizer, env, roots):
    """A tiny model taught the form of a reply, with every legal move as likely as the other."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model, ask, rng = LlamaForCausalLM(config), asker(env), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(120):
        rows = []
        for r in rng.integers(len(roots), size=12):
            situation = roots[r][1]
            prompt = encode_messages(tokenizer, ask.messages(policy_question(situation)))
            reply = f"Hm: {rng.choice(situation.actions)}."
            rows.append((prompt, [*tokenizer.encode(reply, add_special_tokens=False), tokenizer.eos_token_id]))
        width = max(len(p) + len(r) for p, r in rows)
        ids = torch.tensor([[*p, *r, *[0] * (width - len(p) - len(r))] for p, r in rows])
        labels = torch.tensor([[*[-100] * len(p), *r, *[-100] * (width - len(p) - len(r))] for p, r in rows])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.full
def test_the_model_in_the_box_takes_a_step():
    env = MazeText("umaze")
    learner = load_learner("hymba", "maze", env, device="cpu")
    reward = PlayedOn(env, random_roots(env, None, 4, seed=0), learner.ask, None, seed=0)
    before = [p.detach().clone() for p in learner.model.parameters()]
    knobs = GrpoKnobs(steps=1, prompts=2, replies=4, learning_rate=1e-4)
    (row,) = train_grpo(learner.model, learner.tokenizer, reward, knobs=knobs, seed=0)
    assert reward.failures == {"": 8}
    assert -101 <= float(row["reward"]) <= 0
    assert any(not torch.equal(p, q) for p, q in zip(before, learner.model.parameters(), strict=True))


@pytest.mark.full
def test_it_learns_from_groups_of_replies(tmp_path):
    """Two situations, gone on with by first legal moves: each move's reward is fixed."""
    save_tokenizer(tmp_path, 300)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    env = TicTacToe()
    roots = random_roots(env, first_legal, 2, seed=0)
    model = speaker(tokenizer, env, roots)
    reward = PlayedOn(env, roots, asker(env), first_legal, own=first_legal, seed=0)
    knobs = GrpoKnobs(steps=16, prompts=2, replies=32, learning_rate=2e-3)
    rows = train_grpo(model, tokenizer, reward, knobs=knobs, seed=0)
    rewards = [row["reward"] for row in rows]
    assert len(rewards) == 16
    assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 0.4
