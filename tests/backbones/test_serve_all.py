"""`nlrl serve` on a small random model of every backbone, asked by the openai client: text, patterns, adapters.

One server at a time, about half a minute each to start; each ends by its own process id.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from random_models import build
from tiny_tokenizer import save_tokenizer

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.full]

VOCABULARY, STEPS, RANK, START_S = 320, 16, 4, 240
ASKED = [{"role": "user", "content": "the board is empty and it is your turn: row or column?"}]
WIDTHS = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 256}
MODELS: dict[str, dict[str, Any]] = {
    "hymba": {
        "model_type": "hymba", "num_attention_heads": 4, "num_key_value_heads": 2, "global_attn_idx": [0],
        "kv_reuse_group": [[1, 2]], "sliding_window": 12, "num_memory_tokens": 5, "mamba_dt_rank": 4,
        "orig_max_position_embeddings": 256, **WIDTHS,
    },
    "diff": {"model_type": "diff_transformer", "num_attention_heads": 8, "num_key_value_heads": 4, **WIDTHS},
    "ngpt": {"model_type": "ngpt", "n_layer": 3, "n_head": 4, "n_embd": 64, "block_size": 256},
    "bimamba": {
        "model_type": "bimamba", "n_layer": 3, "d_model": 64,
        "ssm_cfg": {"layer": "Mamba2", "d_state": 16, "headdim": 16, "chunk_size": 16},
    },
}  # fmt: skip
ADAPTED = {
    "hymba": (
        "mamba.in_proj", "mamba.out_proj", "mamba.x_proj.0", "mamba.dt_proj.0", "moe.experts.0.gate_proj",
        "moe.experts.0.up_proj", "moe.experts.0.down_proj",
    ),
    "diff": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "ngpt": ("query", "key", "value", "att_c_proj", "c_fc", "mlp_c_proj"),
    "bimamba": ("in_proj", "out_proj"),
}  # fmt: skip
"""All projections that take adapters."""


@dataclass(frozen=True)
class Served:
    """A running server: its model's folder, the openai client for it, and its address and key."""

    family: str
    folder: Path
    client: Any
    address: str
    key: str


@pytest.fixture(scope="module", params=MODELS)
def served(request, tmp_path_factory):
    """The server of one family, as `nlrl serve FOLDER` starts it, with adapters allowed."""
    root = tmp_path_factory.mktemp(request.param)
    folder = build(MODELS[request.param], 0, root / "model", VOCABULARY)
    save_tokenizer(folder, VOCABULARY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    of_one_process = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL")  # earlier tests may have set them
    environment = {name: value for name, value in os.environ.items() if name not in of_one_process}
    environment |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    options = ["--max-model-len", "256", "--enable-lora", "--max-lora-rank", "8", "--max-loras", "2"]
    nlrl = [sys.executable, "-c", "from nlrl.cli import main; main()"]
    command = [*nlrl, "serve", str(folder), "--port", str(port), *options]
    log = root / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    try:
        yield _connected(request.param, folder, process, log, port)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _connected(family, folder, process, log, port):
    from openai import OpenAI

    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                break
        except OSError:
            time.sleep(0.5)
    said = re.search(r"at (http://\S+/v1) with the API key (\S+)", log.read_text())
    assert said, log.read_text()[-3000:]
    return Served(family, folder, OpenAI(base_url=said[1], api_key=said[2], timeout=120), said[1], said[2])


def ask(served, model=None, **changes):
    """The first choice of a greedy chat completion, and the ids of its prompt."""
    how = {"temperature": 0, "max_tokens": STEPS, "logprobs": True}
    more = {"return_token_ids": True, "ignore_eos": True}
    answer = served.client.chat.completions.create(
        model=model or served.folder.name, messages=ASKED, **how, extra_body=more | changes
    )
    return answer.choices[0], answer.prompt_token_ids


def load(folder):
    import torch
    from transformers import AutoModelForCausalLM

    import nlrl_backbones  # noqa: F401  registers the architectures

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def assert_greedy(model, choice, prompt):
    """Each token is the likeliest of the model in this process, with the log-probability that the server told."""
    import torch

    tokens = choice.token_ids
    assert len(tokens) == STEPS
    with torch.no_grad():
        rows = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    own = rows.gather(1, torch.tensor([tokens]).T).flatten()
    assert [told.logprob for told in choice.logprobs.content] == pytest.approx(own.tolist(), abs=1e-3)
    assert own.tolist() == pytest.approx(rows.max(-1).values.tolist(), abs=1e-3)


def test_a_chat_completion_is_the_models_own(served):
    from transformers import AutoTokenizer

    choice, prompt = ask(served)
    tokenizer: Any = AutoTokenizer.from_pretrained(served.folder)
    text = tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    assert prompt == tokenizer.encode(text, add_special_tokens=False)
    # The server holds back bytes that are no whole character yet; an untrained model may end in many.
    rest = tokenizer.decode(choice.token_ids, skip_special_tokens=True).removeprefix(choice.message.content)
    assert rest.strip("\ufffd") == ""
    assert_greedy(load(served.folder), choice, prompt)


def test_completions_obey_a_pattern_and_a_choice(served):
    choice, _ = ask(served, structured_outputs={"regex": "move [1-9]"}, ignore_eos=False)
    assert re.fullmatch("move [1-9]", choice.message.content)
    choice, _ = ask(served, structured_outputs={"choice": ["left", "right"]}, ignore_eos=False)
    assert choice.message.content in ("left", "right")


def adapt(model, targets, folder):
    """Write a random adapter on the named projections as peft does, and wrap the model's as peft does."""
    import torch
    from safetensors.torch import save_file

    class Adapter(torch.nn.Module):
        def __init__(self, base_layer, down, up):
            super().__init__()
            self.base_layer, self.down, self.up = base_layer, down, up

        def forward(self, x):
            return self.base_layer(x) + x @ self.down.T @ self.up.T

    generator, tensors = torch.Generator().manual_seed(2), {}
    for name in [name for name, _ in model.named_modules() if name.endswith(tuple(f".{leaf}" for leaf in targets))]:
        rows, columns = model.get_submodule(name).weight.shape
        down = torch.randn(RANK, columns, generator=generator) * columns**-0.5
        up = torch.randn(rows, RANK, generator=generator) * 0.3
        tensors |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, Adapter(model.get_submodule(name), down, up))
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(targets), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return model


def test_an_adapter_loaded_by_request_equals_the_adapted_model(served):
    before, prompt = ask(served)
    folder = served.folder.parent / "adapter"
    adapted = adapt(load(served.folder), ADAPTED[served.family], folder)
    body = json.dumps({"lora_name": "one", "lora_path": str(folder)}).encode()
    headers = {"Authorization": f"Bearer {served.key}", "Content-Type": "application/json"}
    with urlopen(Request(f"{served.address}/load_lora_adapter", body, headers), timeout=60) as reply:
        assert reply.status == 200
    assert {card.id for card in served.client.models.list().data} == {served.folder.name, "one"}
    choice, _ = ask(served, model="one")
    assert choice.token_ids != before.token_ids
    assert_greedy(adapted, choice, prompt)
    again, _ = ask(served)
    assert again.token_ids == before.token_ids
