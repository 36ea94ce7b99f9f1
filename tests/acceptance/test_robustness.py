"""The fifteen tests of issue 7 with their pass figures, and where each is shown: a short form runs always, the figure
named here by `make torture` where the form is marked so. `runs/LOG.md` has what was measured.

1. kill -9 anywhere: 200 kills, equal records, 0 lost, 0 asked twice but those in flight, integrity_check ok
   tests/torture/test_kill.py::test_sigkill_at_random_moments: 200
   tests/torture/test_kill.py::test_sigkill_in_every_phase_of_a_loop_that_learns: 100
   tests/torture/test_kill_training.py::test_sigkill_around_trainings: KILLS
   tests/torture/test_kill_reload.py::test_sigkill_inside_a_reload_of_vllm: digest
   tests/torture/test_vllm_killed.py::test_vllm_killed_in_the_middle_of_a_batch: SIGKILL
   tests/torture/test_vllm_killed.py::test_the_engine_process_of_a_server_killed_in_the_middle_of_a_batch: engine_of
2. a crash at each file operation of a checkpoint: the last complete one, always
   tests/torture/test_checkpoints.py::test_a_crash_at_every_operation: crash_at
   tests/torture/test_checkpoints.py::test_a_crash_at_every_operation_of_pruning_leaves_what_is_needed: crash_at
3. disk full, read-only, no permission: 50 runs, one sentence, exit code 3, 50 resumed
   tests/torture/test_disk.py::test_every_fault_of_the_disk_is_one_sentence_and_passes: 50
4. endpoint faults: 1,000 calls at 30 %, each an answer or a typed failure, requests <= attempts, Retry-After kept
   tests/torture/test_endpoint.py::test_every_fault_ends_as_an_answer_or_a_typed_failure: 1000
5. a total outage: waits without a busy loop, goes on, or gives up resumable
   tests/torture/test_endpoint.py::test_a_total_outage_pauses_the_run: 300
6. malformed output: 10,000 replies and a corpus of 300 a parser, 0 exceptions, 1 MB under 50 ms
   tests/torture/test_parsers.py::test_any_reply_is_classified_and_none_is_guessed: 10_000
   tests/torture/test_parsers.py::test_a_megabyte_takes_less_than_50_ms: 0.05
   tests/nlrl/test_parse.py::test_harmless_variants_of_a_json_move_are_accepted: accepted
7. a constraint that is ignored: seen at the first answer, stops or falls back, never counted as constrained
   tests/torture/test_endpoint.py::test_a_constraint_that_is_ignored_is_seen_at_the_first_answer: False
   tests/nlrl/test_recorded.py::test_a_reply_that_was_not_held_to_its_form_can_end_the_run: require_constraints
8. rules: 100,000 plies a game against OpenSpiel and gymnasium, perft
   tests/torture/test_rules.py::test_no_difference_in_a_hundred_thousand_plies: 100_000
   tests/envs/test_breakthrough.py::test_perft: perft
9. determinism: same seed, 64 at once or alone, hash seeds, foreign random state: the same record
   tests/nlrl/test_recorded.py::test_concurrency_changes_nothing: 64
   tests/nlrl/test_recorded.py::test_the_hash_seed_of_the_interpreter_changes_nothing: PYTHONHASHSEED
10. resume with something changed: at least 20 fields, each refused by its name; --force-new begins another run
   tests/nlrl/test_manifest.py::test_a_changed_key_is_refused_by_name: OVERRIDES
   tests/nlrl/test_manifest.py::test_what_changed_outside_the_config_is_refused_by_name: NOT_IN_THE_CONFIG
   tests/nlrl/test_manifest.py::test_force_new_begins_another_run: force_new
11. hostile text: 500 payloads through every way out, nothing but our own styles, [up] stays visible
   tests/torture/test_hostile_text.py::test_nothing_but_our_own_styles_reaches_a_terminal: 500
   tests/torture/test_hostile_text.py::test_pictures_are_clean_xml_without_links_or_scripts: row
   tests/torture/test_hostile_text.py::test_a_cast_shows_our_own_styles_only: row
   tests/torture/test_hostile_text.py::test_errors_are_one_clean_line: capsys
12. hostile checkpoints: all refused before any code runs, each within 5 s and 1 GiB
   tests/torture/test_models.py::test_damaged_weights_are_refused: UnsafeFileError
   tests/torture/test_models.py::test_hostile_folders_are_refused_quickly: 1024
   tests/torture/test_models.py::test_weights_with_code_alone_are_no_model: canary
   tests/torture/test_models.py::test_a_folder_with_code_loads_without_running_it: canary
13. paths and names: 200, nothing written outside the run's root
   tests/torture/test_paths.py::test_nothing_is_written_outside_the_runs: 200
14. secrets: canary keys, 0 occurrences, children have only what they need
   tests/torture/test_secrets.py::test_no_key_is_ever_written: CANARIES
   tests/torture/test_secrets.py::test_each_role_sends_its_own_key_and_none_is_written: CANARIES
   tests/torture/test_secrets.py::test_children_that_need_no_key_get_none: environment
15. scale: 1,000,000 calls, 100,000 games, memory < 50 MiB, files constant, record < 1.2 times the compressed text
   tests/torture/test_scale.py::test_a_day_of_calls: 115_000
   tests/torture/test_record_size.py::test_a_record_is_as_small_as_the_text_of_its_calls_compressed: 1.2
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_figure_names_a_test_that_exists_and_holds_it():
    """The figure, or what it is held by, must stand in the test's file: in its parameters or in the test itself."""
    named = re.findall(r"(tests/\S+\.py)::(\w+): (\S+)", __doc__ or "")
    assert [int(n) for n in re.findall(r"^(\d+)\. ", __doc__ or "", re.MULTILINE)] == list(range(1, 16))
    assert len(named) == (__doc__ or "").count("::")
    for path, name, figure in named:
        text = (ROOT / path).read_text(encoding="utf-8")
        found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef) and node.name == name]
        assert len(found) == 1, f"{path}::{name}"
        assert any(isinstance(node, ast.Assert | ast.With) for node in ast.walk(found[0])), f"{path}::{name}"
        assert re.search(rf"(?<!\w){re.escape(figure)}(?!\w)", text), f"{path} says nothing of {figure}"


def test_at_least_twenty_fields_are_changed_in_turn():
    tree = ast.parse((ROOT / "tests/nlrl/test_manifest.py").read_text(encoding="utf-8"))
    sizes = {
        node.targets[0].id: len(node.value.keys if isinstance(node.value, ast.Dict) else node.value.elts)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Dict | ast.Tuple)
    }
    assert sizes["OVERRIDES"] + sizes["NOT_IN_THE_CONFIG"] >= 20
