"""What can go wrong with a chosen batch: each guard looks at it and speaks, with numbers, or is silent.

A guard warns. What makes a candidate impossible is a constraint (``plan.constraints``).
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rightbatch.core.facts import Environment, TaskFacts
from rightbatch.core.plan import Candidate, Evidence, Guard, Objective
from rightbatch.core.signal import Signal
from rightbatch.core.units import format_bytes, format_number
from rightbatch.fit.bound import find_bound
from rightbatch.fit.loader_model import LoaderModel
from rightbatch.fit.roofline import FAST, SLOW
from rightbatch.fit.speed_model import SpeedModel
from rightbatch.fit.stability import Stability
from rightbatch.fit.steps_model import StepsModel
from rightbatch.plan.draws import ASSUMED_HOST_FACTOR
from rightbatch.plan.positives import FEW_POSITIVES, guard_positives

FEW_UPDATES = 100
# Wu and He (2018), arXiv:1803.08494, Fig. 1: error of ResNet-50 rises below 16 images a group.
BATCH_NORM_GROUP = 16
LARGE_SHARE = 0.1  # of the data in one update: draws without replacement are no longer independent
SAME = 0.02  # times that differ less are the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A chosen candidate with everything that guards look at."""

    chosen: Candidate
    candidates: Sequence[Candidate]
    facts: TaskFacts
    environment: Environment
    """Of the device that is planned for."""
    speed: SpeedModel
    loader: LoaderModel
    steps: StepsModel
    objective: Objective
    num_updates: int
    rate: float
    """Planned learning rate."""
    stability: Stability | None
    """What a short branch at the planned rate and batch showed; None where none was trained."""
    is_derived: bool
    """Whether step times and memory are those of a device that is not here."""
    largest_micro_that_fits: int
    usable_bytes: int
    positives_per_example: float | None
    """Positive targets in an example on average; None where the task declares none."""
    fine_tuning: bool
    signal: Signal | None = None
    """Positives counted as they are drawn, and the noise of their gradient, where measured."""


def memory(of: Situation) -> Guard | None:
    """Speaks where a larger micro-batch was timed and does not fit."""
    largest, timed = of.largest_micro_that_fits, of.speed.valid_range[1]
    if largest >= timed:
        return None
    text = f"Memory bounds the micro-batch: {largest:,} fits {format_bytes(of.usable_bytes)},"
    text += f" {timed:,} {'was traced' if of.is_derived else 'was timed'} and does not. Larger batches"
    text += " are accumulated."
    return _guard("memory", text, "derived", "memory_law")


def batch_norm_group(of: Situation) -> Guard | None:
    """Speaks where BatchNorm averages over few examples: its statistics are part of the model."""
    group = of.chosen.micro_batch_size
    if not of.facts.num_batch_norm_layers or group >= BATCH_NORM_GROUP:
        return None
    spread = f"{math.sqrt(2 / (group - 1)):.0%}" if group > 1 else "any amount"
    text = f"BatchNorm normalises over micro-batches of {group}: a variance over so few is off by"
    text += f" {spread} (one standard deviation), whatever the accumulation. GroupNorm or LayerNorm"
    text += " do not depend on it."
    return _guard("batch_norm_group", text, "derived", "wu2018")


def positives_per_update(of: Situation) -> Guard | None:
    """Speaks where an update sees hardly a positive target, or their gradient is mostly noise."""
    if of.signal is not None:
        return guard_positives(of.signal, of.chosen.global_batch_size)
    share = of.positives_per_example
    if not share:
        return None
    expected = of.chosen.global_batch_size * share
    if expected >= FEW_POSITIVES:
        return None
    text = (
        f"An update sees {format_number(float(f'{expected:.3g}'))} positive targets on average. If they"
    )
    text += f" fell independently, {math.exp(-expected):.2%} of all updates would see none; where they"
    text += f" cluster it is more. {FEW_POSITIVES} on average need a batch of"
    text += f" {math.ceil(FEW_POSITIVES / share):,}, or positives drawn more often."
    return _guard("positives_per_update", text, "derived", "sparse_law")


def few_updates(of: Situation) -> Guard | None:
    """Speaks where the whole run has fewer than 100 optimizer steps."""
    if of.num_updates >= FEW_UPDATES:
        return None
    text = f"The whole run is {of.num_updates:,} updates: fewer than {FEW_UPDATES}, too few for"
    text += " the pilot's noise scale to stand for it. Train longer, or bound the batch: --max-batch."
    return _guard("few_updates", text, "assumed", "default")


def beyond_critical(of: Situation) -> Guard | None:
    """Speaks above the critical batch size, where every rule for the rate is least reliable."""
    critical, batch = of.steps.critical_batch_size, of.chosen.global_batch_size
    if batch <= critical:
        return None
    text = "The batch lies above the critical batch size of about"
    text += f" {format_number(round(critical))} examples: it needs {1 + batch / critical:.1f} x the"
    text += (
        " fewest examples, and learning-rate rules are least reliable there: compare with half of it"
    )
    text += " before a long run."
    return _guard("beyond_critical", text, "derived", "mccandlish2018")


def input_bound(of: Situation) -> Guard | None:
    """Speaks where reading the data sets the pace, which no batch size changes."""
    size = of.chosen.micro_batch_size
    if find_bound(of.speed, of.loader, size) != "input":
        return None
    rate = format_number(float(f"{of.loader.examples_per_second(size):.3g}"))
    advice = "add workers or make loading cheaper" if of.loader.overlaps else "raise num_workers"
    text = f"The loader gives {rate} examples/s, less than the step takes: a larger batch will not"
    text += f" help; {advice}."
    return _guard("input_bound", text, "derived" if of.is_derived else "measured", "measured")


def useless_accumulation(of: Situation) -> Guard | None:
    """Speaks where a batch that needs no accumulation reaches the target as soon."""
    mine = of.chosen
    if mine.accumulation_steps == 1:
        return None
    single = [c for c in of.candidates if c.accumulation_steps == 1]
    best = min(single, key=lambda c: c.seconds_ratio.value, default=None)
    if best is None or best.seconds_ratio.value > (1 + SAME) * mine.seconds_ratio.value:
        return None
    text = f"Accumulation buys nothing in time: a batch of {best.global_batch_size:,} in one pass is"
    text += f" predicted to take {best.seconds_ratio.value / mine.seconds_ratio.value:.2f} x as long."
    return _guard("useless_accumulation", text, "derived", "mccandlish2018")


def share_of_data(of: Situation) -> Guard | None:
    """Speaks where one update averages much of the data, and the noise model's draws run out."""
    count = of.facts.num_train_examples
    share = of.chosen.global_batch_size / count
    if share <= LARGE_SHARE:
        return None
    text = f"One update averages {share:.0%} of the {count:,} training examples: the noise left over"
    text += f" is {1 - share:.2f} x what the model assumes, which draws as if data never ran out."
    return _guard("share_of_data", text, "derived", "mccandlish2018")


def fine_tuning(of: Situation) -> Guard | None:
    """Speaks where the weights are pre-trained: says how far from them the plan may move."""
    if not of.fine_tuning:
        return None
    recipe = of.facts.recipe
    distance = of.rate / recipe.lr * recipe.batch_size / of.chosen.global_batch_size
    text = f"Fine-tuning: over the same examples, rate x updates is {distance:.2f} x today's, which"
    text += " bounds how far the weights move from the pre-trained ones. Forgetting follows this"
    text += " distance, not the batch size; evaluate the old task too, before and after."
    return _guard("fine_tuning", text, "derived", "forgetting")


def unvalidated(of: Situation) -> Guard | None:
    """Speaks where the objective is accuracy: nothing here has measured any."""
    if of.objective != "accuracy":
        return None
    text = "No measurement here says that a smaller batch generalises better on this task: train the"
    text += " plan and today's recipe with several seeds and compare before relying on it."
    return _guard("unvalidated", text, "assumed", "default")


def one_size_timed(of: Situation) -> Guard | None:
    """Speaks where step time is known at one micro-batch size only."""
    low, high = of.speed.valid_range
    if low < high:
        return None
    text = f"Only micro-batches of {low:,} were timed: nothing is known of others, and candidates"
    text += " differ by accumulation alone. Measure longer: --time-budget."
    return _guard("one_size_timed", text, "measured", "measured")


def undecided_noise(of: Situation) -> Guard | None:
    """Speaks where the noise scale has no upper bound, so that the plan's range is an assumption."""
    if of.steps.decided:
        return None
    text = "The noise scale is only bounded from below"
    text += f" ({format_number(round(of.steps.noise.low))} examples): critical batch sizes from"
    text += f" {format_number(round(of.steps.low))} up to {format_number(round(of.steps.high))} were"
    text += " allowed for."
    return _guard("undecided_noise", text, "assumed", "noise_calibration")


def unknown_optimizer(of: Situation) -> Guard | None:
    """Speaks where no rule says how the optimizer's constants move."""
    if of.facts.optimizer_family != "other":
        return None
    text = f"No rule is known for {of.facts.optimizer_class}: its constants are kept as they are."
    return _guard("unknown_optimizer", text, "assumed", "default")


def stability(of: Situation) -> Guard | None:
    """Speaks where the rate was tried at the planned batch, or rises without having been."""
    task, found = shlex.quote(of.facts.spec), of.stability
    if found is None:
        if of.rate <= of.facts.recipe.lr:
            return None
        text = f"The learning rate rises to {of.rate / of.facts.recipe.lr:.2f} x today's. That it"
        text += f" trains stably is assumed: `rightbatch plan {task} --check-lr` measures it."
        return _guard("stability", text, "assumed", "default")
    where = f"{found.updates:,} updates at {found.learning_rate:.3g} from today's weights after"
    where += f" {found.examples_seen:,} examples, without warmup"
    if found.diverged:
        text = f"Unstable, measured: in {where}, the loss ceased to be finite."
    else:
        low, high = found.change
        text = f"{where}: loss {found.before:.3g} -> {found.after:.3g}, a change of {low:+.0%} to"
        text += f" {high:+.0%}."
        text = f"Stable, measured: {text}" if found.is_stable else f"Unstable, measured: {text}"
    if not found.is_stable:
        text += f" Lower the rate; `rightbatch plan {task} --tune-lr` looks for one that trains."
    return _guard("stability", text, "measured", "rate_trials")


def lower_precision(of: Situation) -> Guard | None:
    """Speaks where the plan computes in another type than today: its speed says nothing of accuracy."""
    mine, today = of.chosen.precision, of.facts.recipe.precision
    if mine in {today, "fp32"}:
        return None
    text = f"{mine} in place of {today} rounds matrix products more coarsely. That this leaves the"
    text += " target in reach is assumed: step times cannot show it, `rightbatch validate"
    text += f" {shlex.quote(of.facts.spec)} --plan plan.toml` measures it."
    return _guard("lower_precision", text, "assumed", "default")


def not_here(of: Situation) -> Guard | None:
    """Speaks where the plan is for a device that nothing was run on."""
    if not of.is_derived:
        return None
    text = f"Derived for {of.environment.device_name}, which is not here: steps by a roofline at"
    text += f" {SLOW.compute:.0%} to {FAST.compute:.0%} of its peak in matrix products and"
    text += f" {SLOW.bandwidth:.0%} to {FAST.bandwidth:.0%} of its bandwidth, memory from traced steps."
    text += f" The loader is taken to be as fast there within a factor of {ASSUMED_HOST_FACTOR:g}; the"
    text += f" noise was measured here. There, `rightbatch plan {shlex.quote(of.facts.spec)} --device"
    text += " cuda` measures steps, loader and memory."
    return _guard("not_here", text, "derived", "williams2009")


GUARDS: tuple[Callable[[Situation], Guard | None], ...] = (
    not_here,
    stability,
    lower_precision,
    undecided_noise,
    one_size_timed,
    unknown_optimizer,
    beyond_critical,
    few_updates,
    share_of_data,
    memory,
    input_bound,
    useless_accumulation,
    batch_norm_group,
    positives_per_update,
    fine_tuning,
    unvalidated,
)


def find_guards(of: Situation) -> tuple[Guard, ...]:
    """What every guard has to say, the weightiest first."""
    return tuple(found for guard in GUARDS if (found := guard(of)) is not None)


def _guard(name: str, text: str, evidence: Evidence, source: str) -> Guard:
    return Guard(name=name, text=text, evidence=evidence, source=source)
