import math

import pytest

from rightbatch.core.devices import parse_accelerator
from rightbatch.core.errors import InfeasibleError, InvalidInputError
from rightbatch.core.sources import SOURCES
from rightbatch.fit.calibration import SWEEPS
from rightbatch.plan.advise import advise
from rightbatch.plan.situation import Advice, Situation
from rightbatch.plan.starting_batch import CRITICAL_BATCH_SIZES
from rightbatch.plan.transformer_config import TransformerConfig, read_transformer_config

GPT2 = {
    "model_type": "gpt2",
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "vocab_size": 50257,
    "n_positions": 1024,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
}


def by_name(**known: object) -> dict[str, Advice]:
    return {line.decision.name: line for line in advise(Situation(**known))}  # type: ignore[arg-type]


@pytest.fixture
def gpt2(tmp_path) -> TransformerConfig:
    import json

    path = tmp_path / "config.json"
    path.write_text(json.dumps(GPT2))
    return read_transformer_config(path)


def test_a_batch_that_trains_today_is_kept_and_the_spread_of_published_ones_is_shown() -> None:
    batch = by_name(batch_size=48, learning_rate=1e-3)["global_batch_size"].decision
    assert (batch.value, batch.evidence) == (48, "assumed")
    assert (batch.low, batch.high) == (min(CRITICAL_BATCH_SIZES), max(CRITICAL_BATCH_SIZES))


def test_every_sweep_that_calibrates_the_noise_counts_in_the_starting_batch() -> None:
    assert {sweep.critical_batch_size for sweep in SWEEPS} <= set(CRITICAL_BATCH_SIZES)
    reason = by_name()["global_batch_size"].decision.reason
    assert f"6 published critical batch sizes and {len(SWEEPS)} measured" in reason


def test_time_is_bought_with_a_larger_batch_than_examples() -> None:
    sizes = {
        o: by_name(objective=o)["global_batch_size"].decision.value
        for o in ("time", "balanced", "compute")
    }
    assert sizes == {"time": 256, "balanced": 128, "compute": 32}


def test_small_data_keeps_twenty_updates_an_epoch() -> None:
    assert by_name(num_train_examples=700)["global_batch_size"].decision.value == 32


def test_language_models_follow_two_published_laws_in_tokens(gpt2: TransformerConfig) -> None:
    tokens = 2_500_000_000
    batch = by_name(transformer=gpt2, num_train_tokens=tokens, sequence_length=1024)[
        "global_batch_size"
    ]
    step_law = 0.58 * tokens**0.571 / 1024
    deepseek = 0.2920 * (6 * 124_439_808 * tokens) ** 0.3271 / 1024
    assert sorted((batch.decision.low, batch.decision.high)) == sorted((
        round(step_law),
        round(deepseek),
    ))
    assert batch.decision.value == round(math.sqrt(round(step_law) * round(deepseek)))


def test_the_split_multiplies_to_the_batch_and_fits_the_device(gpt2: TransformerConfig) -> None:
    device = parse_accelerator("cuda:t4")
    lines = by_name(
        transformer=gpt2, sequence_length=1024, accelerator=device, batch_size=64, num_replicas=2
    )
    micro = lines["micro_batch_size"].decision.value
    assert micro * lines["accumulation_steps"].decision.value * 2 == 64
    assert lines["precision"].decision.value == "fp32"  # its matrix units know no bf16
    assert micro < 32


def test_a_model_that_exceeds_the_device_is_infeasible(gpt2: TransformerConfig) -> None:
    from dataclasses import replace

    huge = replace(gpt2, num_layers=2000)
    known = {"transformer": huge, "sequence_length": 1024, "accelerator": parse_accelerator("cuda:t4")}
    with pytest.raises(InfeasibleError, match=r"one sequence takes .*; need at most"):
        by_name(**known)


def test_a_rate_moves_by_the_optimizers_rule_only_with_its_batch() -> None:
    assert by_name(learning_rate=0.3)["learning_rate"].decision.value == 0.3
    assert by_name(optimizer="sgd")["learning_rate"].decision.evidence == "assumed"
    assert by_name(batch_size=32, learning_rate=1e-3)["learning_rate"].decision.value == pytest.approx(
        1e-3
    )


def test_rare_positives_give_their_expected_count_and_prior_bias() -> None:
    lines = by_name(positive_fraction=0.01, targets_per_example=100, batch_size=2)
    assert lines["expected_positives"].decision.value == pytest.approx(2.0)
    assert f"{0.99**200:.2%}" in lines["expected_positives"].decision.reason
    assert lines["prior_bias"].decision.value == pytest.approx(-math.log(99), abs=1e-3)


def test_batch_norm_sets_the_smallest_group() -> None:
    assert by_name(normalization="batch")["smallest_micro_batch_size"].decision.value == 16
    assert "smallest_micro_batch_size" not in by_name(normalization="layer")


def test_every_line_has_a_known_source_and_a_command() -> None:
    for line in by_name(
        batch_size=32, positive_fraction=0.1, normalization="batch", num_train_examples=10
    ).values():
        assert line.decision.source in SOURCES
        assert line.command.startswith("rightbatch ")


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"batch_size": 0}, "--batch 0; need a positive number"),
        ({"learning_rate": math.inf}, "--lr inf; need a positive number"),
        ({"positive_fraction": 1.0}, "--positives 1.0; need a fraction between 0 and 1"),
        ({"optimizer": "adamm"}, "--optimizer adamm; need a torch.optim class"),
        ({"num_replicas": -1}, "--replicas -1; need a positive number"),
    ],
)
def test_numbers_that_no_training_has_are_refused(known: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        by_name(**known)


def test_replicas_share_the_batch_evenly_and_an_unknown_batch_is_that_of_the_rest() -> None:
    lines = by_name(batch_size=32, num_replicas=6)
    assert lines["global_batch_size"].decision.value == 30
    assert lines["global_batch_size"].decision.rule == "today's, as a multiple of 6"
    assert lines["micro_batch_size"].decision.value == 5
    assert by_name(batch_size=34, num_replicas=6)["global_batch_size"].decision.value == 36
    many = by_name(num_train_examples=1000, num_replicas=512)["global_batch_size"].decision
    assert (many.value, many.reason) == (512, "an example for each of 512 replicas is the least")


def test_parameters_that_a_device_cannot_hold_are_refused_and_counted_by_optimizer() -> None:
    device = parse_accelerator("cuda:a100-40gb")
    with pytest.raises(InfeasibleError, match=r"Adam's two averages take about 104 GiB.*39.5 GiB of"):
        by_name(accelerator=device, num_parameters=7_000_000_000)
    sgd = by_name(accelerator=device, num_parameters=10**9, optimizer="sgd")["micro_batch_size"]
    assert "weights, gradients and momentum take about 11.2 GiB in fp32, of 39.5 GiB on" in (
        sgd.decision.reason
    )


def test_what_needs_more_to_be_known_says_what(gpt2: TransformerConfig) -> None:
    with pytest.raises(InvalidInputError, match=r"--tokens 1,000 without a model.*\n.*--seq"):
        by_name(num_train_tokens=1000, sequence_length=10)
    with pytest.raises(InvalidInputError, match=r"without the length of sequences.*\n.*--seq"):
        by_name(transformer=gpt2, accelerator=parse_accelerator("cuda:t4"))
    laws = by_name(num_train_tokens=10**10, sequence_length=1024, num_parameters=10**8)
    assert laws["global_batch_size"].decision.source == "steplaw2025"


def test_an_optimizer_without_a_customary_rate_is_given_none() -> None:
    rate = by_name(optimizer="muon")["learning_rate"].decision
    assert rate.value is None
    assert "no customary rate is known for muon" in rate.reason
