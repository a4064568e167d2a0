"""What can go wrong with a chosen batch: each guard looks at it and speaks, with numbers, or is silent.

A guard warns. What makes a candidate impossible is a constraint (``plan.constraints``).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from rightbatch.core.plan import Guard
from rightbatch.core.units import format_bytes, format_number
from rightbatch.fit.bound import find_bound
from rightbatch.plan import unknown_guards
from rightbatch.plan.guarded import Situation, speak
from rightbatch.plan.positives import FEW_POSITIVES, guard_positives

FEW_UPDATES = 100
# Wu and He (2018), arXiv:1803.08494, Fig. 1: error of ResNet-50 rises below 16 images a group.
BATCH_NORM_GROUP = 16
LARGE_SHARE = 0.1  # of the data in one update: draws without replacement are no longer independent
SAME = 0.02  # times that differ less are the same


def memory(of: Situation) -> Guard | None:
    """Speaks where a larger micro-batch was timed and does not fit."""
    largest, timed = of.largest_micro_that_fits, of.speed.valid_range[1]
    if largest >= timed:
        return None
    text = f"Memory bounds the micro-batch: {largest:,} fits {format_bytes(of.usable_bytes)},"
    text += f" {timed:,} {'was traced' if of.is_derived else 'was timed'} and does not. Larger batches"
    text += " are accumulated."
    return speak("memory", text, "derived", "memory_law")


def batch_norm_group(of: Situation) -> Guard | None:
    """Speaks where BatchNorm averages over few examples: its statistics are part of the model."""
    group = of.chosen.micro_batch_size
    if not of.facts.num_batch_norm_layers or group >= BATCH_NORM_GROUP:
        return None
    spread = f"{math.sqrt(2 / (group - 1)):.0%}" if group > 1 else "any amount"
    text = f"BatchNorm normalises over micro-batches of {group}: a variance over so few is off by"
    text += f" {spread} (one standard deviation), whatever the accumulation. GroupNorm or LayerNorm"
    text += " do not depend on it."
    return speak("batch_norm_group", text, "derived", "wu2018")


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
    return speak("positives_per_update", text, "derived", "sparse_law")


def few_updates(of: Situation) -> Guard | None:
    """Speaks where the whole run has fewer than 100 optimizer steps."""
    if of.num_updates >= FEW_UPDATES:
        return None
    text = f"The whole run is {of.num_updates:,} updates: fewer than {FEW_UPDATES}, too few for"
    text += " the pilot's noise scale to stand for it. Train longer, or bound the batch: --max-batch."
    return speak("few_updates", text, "assumed", "default")


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
    return speak("beyond_critical", text, "derived", "mccandlish2018")


def short_of_target(of: Situation) -> Guard | None:
    """Speaks where the batch needs more examples to the target than the run may hold."""
    ratio, held, target = of.chosen.examples_ratio, of.run_examples, of.facts.target
    most = ratio.high or ratio.value
    if target is None or held is None or most <= 1 + SAME:
        return None
    if of.target_examples is not None and most * of.target_examples <= held:
        return None
    text = f"Examples to {target}: {ratio.value:.1f} x today's"
    text += (
        f" ({ratio.low or 0:.1f} to {most:.1f}), while the run keeps today's {held:,}. The target is"
    )
    if of.target_examples is None:
        text += f" missed unless today's recipe meets it within {1 / most:.0%} to"
        text += f" {min(1.0, 1 / ratio.value):.0%} of its run"
    else:
        text += f" missed if it takes more than {held / of.target_examples:.1f} x the"
        text += f" {of.target_examples:,} that today's recipe took"
    text += ": then raise epochs (or steps) in plan.toml."
    return speak("short_of_target", text, "derived", "mccandlish2018")


def slow_schedule(of: Situation) -> Guard | None:
    """Speaks where the batch schedule that was asked for is predicted to cost time."""
    ratio = of.schedule_ratio
    if ratio is None or ratio.value <= 1 + SAME:
        return None
    text = f"The batch schedule is predicted to take {ratio.value:.2f} ({ratio.low or 0:.2f} to"
    text += f" {ratio.high or math.inf:.2f}) x the time of one batch: leave --batch-schedule out."
    return speak("slow_schedule", text, "derived", "mccandlish2018")


def input_bound(of: Situation) -> Guard | None:
    """Speaks where reading the data sets the pace, which no batch size changes."""
    size = of.chosen.micro_batch_size
    if find_bound(of.speed, of.loader, size) != "input":
        return None
    rate = format_number(float(f"{of.loader.examples_per_second(size):.3g}"))
    advice = "add workers or make loading cheaper" if of.loader.overlaps else "raise num_workers"
    text = f"The loader gives {rate} examples/s, less than the step takes: a larger batch will not"
    text += f" help; {advice}."
    return speak("input_bound", text, "derived" if of.is_derived else "measured", "measured")


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
    return speak("useless_accumulation", text, "derived", "mccandlish2018")


def share_of_data(of: Situation) -> Guard | None:
    """Speaks where one update averages much of the data, and the noise model's draws run out."""
    count = of.facts.num_train_examples
    share = of.chosen.global_batch_size / count
    if share <= LARGE_SHARE:
        return None
    text = f"One update averages {share:.0%} of the {count:,} training examples: the noise left over"
    text += f" is {1 - share:.2f} x what the model assumes, which draws as if data never ran out."
    return speak("share_of_data", text, "derived", "mccandlish2018")


def fine_tuning(of: Situation) -> Guard | None:
    """Speaks where the weights are pre-trained: says how far from them the plan may move."""
    if not of.fine_tuning:
        return None
    recipe = of.facts.recipe
    distance = of.rate / recipe.lr * recipe.batch_size / of.chosen.global_batch_size
    text = f"Fine-tuning: over the same examples, rate x updates is {distance:.2f} x today's, which"
    text += " bounds how far the weights move from the pre-trained ones. Forgetting follows this"
    text += " distance, not the batch size; evaluate the old task too, before and after."
    return speak("fine_tuning", text, "derived", "forgetting")


GUARDS: tuple[Callable[[Situation], Guard | None], ...] = (
    unknown_guards.not_here,
    unknown_guards.stability,
    unknown_guards.lower_precision,
    unknown_guards.undecided_noise,
    unknown_guards.one_size_timed,
    unknown_guards.today_in_passes,
    short_of_target,
    slow_schedule,
    unknown_guards.unknown_optimizer,
    unknown_guards.own_constants,
    beyond_critical,
    few_updates,
    share_of_data,
    memory,
    input_bound,
    useless_accumulation,
    batch_norm_group,
    positives_per_update,
    fine_tuning,
    unknown_guards.unvalidated,
)


def find_guards(of: Situation) -> tuple[Guard, ...]:
    """What every guard has to say, the weightiest first."""
    return tuple(found for guard in GUARDS if (found := guard(of)) is not None)
