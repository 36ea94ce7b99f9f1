"""Folders of models from strangers: refused in one sentence before any of it runs, or loaded without running any."""

import json
import os
import pickle
import resource
import shutil
import struct
from pathlib import Path

import pytest

from nlrl.errors import ConfigError, NlrlError, UnsafeFileError
from nlrl.model_files import check_model_folder, check_template, fingerprint
from nlrl.registry import resolve_model
from nlrl_backbones import boxed_dir

BOXED = Path(boxed_dir("hymba"))


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the boxed model that a stranger might have made."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in BOXED.iterdir():
        if path.is_file() and not path.name.endswith((".nbi", ".nbc")):
            shutil.copy(path, folder / path.name)
    return folder


def changed(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def header(path: Path, table, data: bytes = b"", length: int | None = None) -> None:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def tensor(begin: int, end: int, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


WEIGHTS = {
    "huge header": lambda p: header(p, b"{}", length=1 << 62),
    "header longer than the file": lambda p: header(p, b"{}", length=3),
    "no header": lambda p: p.write_bytes(b"\x00" * 4),
    "header is no JSON": lambda p: header(p, b"{]"),
    "header is a list": lambda p: header(p, [1]),
    "header nested deep": lambda p: header(p, b"[" * 200_000),
    "overlap": lambda p: header(p, {"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)),
    "gap": lambda p: header(p, {"a": tensor(0, 8), "b": tensor(16, 24)}, bytes(24)),
    "truncated": lambda p: header(p, {"a": tensor(0, 8)}, bytes(4)),
    "trailing bytes": lambda p: header(p, {"a": tensor(0, 8)}, bytes(9)),
    "beyond the end": lambda p: header(p, {"a": tensor(0, 1 << 50, (1 << 48,))}, bytes(8)),
    "negative": lambda p: header(p, {"a": tensor(-8, 0)}, bytes(8)),
    "shape does not fit": lambda p: header(p, {"a": tensor(0, 8, (3,))}, bytes(8)),
    "unknown dtype": lambda p: header(p, {"a": tensor(0, 8, dtype="PICKLE")}, bytes(8)),
    "really a pickle": lambda p: p.write_bytes(pickle.dumps({"a": 1}) * 99),
    "cut in half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
}


@pytest.mark.parametrize("fault", WEIGHTS)
def test_damaged_weights_are_refused(model, fault):
    path = next(model.glob("*.safetensors"))
    WEIGHTS[fault](path)
    with pytest.raises(UnsafeFileError, match="is damaged"):
        check_model_folder(model)


def link_out(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.json").symlink_to("/etc/passwd")


def pipe(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    os.mkfifo(model / "tokenizer.json")


FOLDERS = {
    "link out of the folder": (link_out, "link out of its folder"),
    "pipe": (pipe, "no ordinary file"),
    "config is no JSON": (lambda m: (m / "config.json").write_text("{"), "not JSON"),
    "config is a list": (lambda m: (m / "config.json").write_text("[]"), "no table of settings"),
    "config nested deep": (lambda m: (m / "config.json").write_text("[" * 100_000), "not JSON"),
    "config too long": (lambda m: (m / "config.json").write_text(" " * (2 << 20) + "{}"), "too long"),
    "CVE-2026-4372": (lambda m: changed(m / "config.json", _attn_implementation_internal="evil/kernel"), "fetch code"),
    "attention from a hub": (lambda m: changed(m / "config.json", attn_implementation="evil/kernel"), "fetch code"),
    "nested": (lambda m: changed(m / "config.json", text_config={"attn_implementation": "a/b:c"}), "fetch code"),
    "a million tokens": (
        lambda m: changed(m / "tokenizer.json", added_tokens=[{"id": i, "content": "x"} for i in range(10**6)]),
        "adds 1,000,000 tokens",
    ),
    "template walks": (
        lambda m: (m / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        "reaches for what no template needs",
    ),
    "template never ends": (
        lambda m: (m / "chat_template.jinja").write_text(
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        ),
        "more time or memory|does not come to an end",  # the latter on a machine that has no time for it
    ),
    "template grows": (
        lambda m: changed(m / "tokenizer_config.json", chat_template="{{ 'x' * 9999999999 }}"),
        "more time or memory",
    ),
}


def worked() -> float:
    """Seconds of CPU of this process and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@pytest.mark.parametrize("fault", FOLDERS)
def test_hostile_folders_are_refused_quickly(model, fault, row):
    spoil, says = FOLDERS[fault]
    spoil(model)
    began, before = worked(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsafeFileError, match=says):
        check_model_folder(model)
    taken, grown = worked() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    row(f"refused after {taken:.1f} s of CPU, memory +{grown:.0f} MiB")
    assert grown < 1024
    assert taken < 5


def test_weights_with_code_alone_are_no_model(model):
    canary = model / "canary"

    class Evil:
        def __reduce__(self):
            return (canary.write_text, ("ran",))

    for path in model.glob("*.safetensors"):
        path.unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConfigError, match=r"only \*\.safetensors files are read"):
        resolve_model(str(model))
    assert not canary.exists()


def test_a_folder_with_code_loads_without_running_it(model):
    """As the official Hymba folders are: `auto_map` in the configuration, modules and a pickle beside the weights."""
    pytest.importorskip("torch")
    from nlrl.engine.torch import TorchEngine

    canary = model / "canary"
    code = f"from pathlib import Path\nPath({str(canary)!r}).write_text('ran')\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py"):
        (model / name).write_text(code)
    names = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    changed(model / "config.json", auto_map=names)
    changed(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]})
    (model / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch canary'\ntR.")
    try:
        TorchEngine(str(model))
    except NlrlError as error:
        pytest.fail(f"an official folder must load: {error}")
    assert not canary.exists()


def test_the_cache_of_the_hub_may_link_to_its_blobs(model, tmp_path):
    repo = tmp_path / "models--org--name"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for path in model.iterdir():
        shutil.move(path, repo / "blobs" / path.name)
        (snapshot / path.name).symlink_to(repo / "blobs" / path.name)
    check_model_folder(snapshot)
    assert fingerprint(snapshot) == fingerprint(BOXED)


def test_ordinary_templates_pass(tmp_path):
    for template in (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% break %}{% endfor %}",
        "{{ raise_exception('no system role') }}",
        "{%- if tools %}{{ tools | tojson }}{% endif %}{{ bos_token }}",
    ):
        check_template(template, tmp_path)
    with pytest.raises(UnsafeFileError, match="too long"):
        check_template("x" * (1 << 19), tmp_path)


def test_the_fingerprint_sees_one_changed_byte(model):
    assert fingerprint(model) == fingerprint(BOXED)
    path = next(model.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert fingerprint(model) != fingerprint(BOXED)


def test_an_official_checkpoint_without_a_kind_is_sent_to_convert(model):
    settings = json.loads((model / "config.json").read_text())
    del settings["model_type"]
    (model / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="names no model_type; make an official checkpoint loadable by `nlrl convert"):
        check_model_folder(model)
