"""A transformer's memory without code, from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli_runner import assert_three_parts, run_cli

GPT2 = {
    "model_type": "gpt2",
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "vocab_size": 50257,
    "n_positions": 1024,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.0,
    "attn_pdrop": 0.0,
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(GPT2))
    return path


def answer(config: Path, *options: str) -> dict[str, Any]:
    called = run_cli("memory", "--hf-config", config, "--seq", "512", *options, "--json")
    assert called.code == 0, called.err
    return called.document


def test_parts_add_up_and_the_range_holds_the_peak(config: Path) -> None:
    document = answer(config, "--batch", "1,8,64", "--precision", "bf16")
    assert document["num_parameters"] == 124_439_808
    assert (document["evidence"], document["source"]["key"]) == ("derived", "korthikanti2022")
    assert (document["limit_bytes"], document["max_micro_batch_size"]) == (None, None)
    for found in document["predictions"]:
        assert sum(found["parts"].values()) == found["peak_bytes"]
        assert found["low_bytes"] < found["peak_bytes"] < found["high_bytes"]
    assert [p["peak_at"] for p in document["predictions"]] == ["optimizer", "backward", "backward"]


@pytest.mark.parametrize("options", [(), ("--checkpointing",), ("--device", "cuda:a100-40gb")])
def test_the_largest_batch_fits_and_the_next_does_not(config: Path, options: tuple[str, ...]) -> None:
    document = answer(config, "--limit", "24GiB", *options)
    largest, usable = document["max_micro_batch_size"], 0.9 * 24 * 2**30
    sizes = f"{largest},{largest + 1}"
    inside, outside = answer(config, "--limit", "24GiB", "--batch", sizes, *options)["predictions"]
    assert inside["high_bytes"] <= usable < outside["high_bytes"]


def test_a_device_is_a_limit_whose_context_counts(config: Path) -> None:
    alone, on_device = answer(config), answer(config, "--device", "cuda:a100-40gb")
    assert on_device["limit_bytes"] == 40_441 * 2**20
    beside = on_device["predictions"][0]["high_bytes"] - alone["predictions"][0]["high_bytes"]
    assert beside == 600_000_000 + 2 * 8_519_680


@pytest.mark.parametrize("option", ["--checkpointing", "--precision=pure-bf16", "--optimizer=sgd"])
def test_an_option_that_saves_memory_makes_room_for_more(config: Path, option: str) -> None:
    saving = answer(config, "--limit", "24GiB", option)["max_micro_batch_size"]
    assert saving > answer(config, "--limit", "24GiB")["max_micro_batch_size"]


def test_the_text_names_source_errors_and_what_is_not_in_it(config: Path) -> None:
    called = run_cli("memory", "--hf-config", config, "--seq", "512", "--limit", "24GiB")
    for words in ("arXiv:2205.05198", "-0.5% to +0.5% off", "the allocator's rounding", "derived and"):
        assert words in called.out


def test_what_does_not_fit_says_the_missing_bytes_and_what_saves_them(config: Path) -> None:
    called = run_cli("memory", "--hf-config", config, "--seq", "512", "--limit", "1GiB")
    assert_three_parts(
        called,
        code=3,
        found="one sequence needs",
        need="bytes more",
        hint="--optimizer sgd saves 954 MiB",
    )


@pytest.mark.parametrize(
    ("options", "found", "hint"),
    [
        (("--seq", "2048"), "2048 tokens", "shorten"),
        (("--seq", "0"), "sequence_length = 0", "sequence_length"),
        (("--optimizer", "adamx", "--seq", "8"), "'adamx'", "did you mean"),
        ((), "without --seq", "--seq 512"),
        (("--seq", "8", "--verify"), "--verify", "leave it out"),
        (("--seq", "8", "--precision", "fp16"), "fp16", "bf16"),
        (("--seq", "8", "--device", "cuda:1"), "--device cuda:1", "cuda:a100-40gb"),
        (("--seq", "8", "--accumulation", "0"), "--accumulation 0", "--accumulation 1"),
        (("--seq", "8", "--headroom", "1"), "--headroom 1", "0.1"),
    ],
)
def test_an_option_that_cannot_be_is_refused(
    config: Path, options: tuple[str, ...], found: str, hint: str
) -> None:
    called = run_cli("memory", "--hf-config", config, *options)
    assert_three_parts(called, code=2, found=found, need="", hint=hint)


def test_a_config_beside_a_task_or_without_either_is_refused(config: Path) -> None:
    for argv, found in ((["digits", "--hf-config", config], "TASK digits and"), ([], "neither TASK")):
        assert_three_parts(
            run_cli("memory", *argv), code=2, found=found, need="one of", hint="--hf-config"
        )
    called = run_cli("memory", "digits", "--seq", "512")
    assert_three_parts(called, code=2, found="--seq", need="--hf-config", hint="leave them out")
