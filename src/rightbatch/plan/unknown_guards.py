"""Guards that speak of what was not measured, not decided or not tried: a plan then rests on less."""

from __future__ import annotations

import shlex

from rightbatch.core.plan import Guard
from rightbatch.core.units import format_number
from rightbatch.fit.roofline import FAST, SLOW
from rightbatch.plan.draws import ASSUMED_HOST_FACTOR
from rightbatch.plan.guarded import Situation, speak
from rightbatch.plan.scaling import TORCH_DEFAULTS


def unvalidated(of: Situation) -> Guard | None:
    """Speaks where the objective is accuracy: nothing here has measured any."""
    if of.objective != "accuracy":
        return None
    text = "No measurement here says that a smaller batch generalises better on this task: train the"
    text += " plan and today's recipe with several seeds and compare before relying on it."
    return speak("unvalidated", text, "assumed", "default")


def one_size_timed(of: Situation) -> Guard | None:
    """Speaks where step time is known at one micro-batch size only."""
    low, high = of.speed.valid_range
    if low < high:
        return None
    text = f"Only micro-batches of {low:,} were timed: nothing is known of others, and candidates"
    text += " differ by accumulation alone. Measure longer: --time-budget."
    return speak("one_size_timed", text, "measured", "measured")


def today_in_passes(of: Situation) -> Guard | None:
    """Speaks where today's batch was not timed in one pass, so that ratios are to another run."""
    if of.today_passes == 1:
        return None
    batch, passes = of.facts.recipe.batch_size, of.today_passes
    text = f"Today's batch of {batch:,} was not timed in one pass: it is taken to run in {passes:,} of"
    text += f" {batch // passes:,}, which may take longer, and the times are ratios to that. Measure"
    text += " longer: --time-budget."
    return speak("today_in_passes", text, "assumed", "measured")


def undecided_noise(of: Situation) -> Guard | None:
    """Speaks where the noise scale has no upper bound, so that the plan's range is an assumption."""
    if of.steps.decided:
        return None
    text = "The noise scale is only bounded from below"
    text += f" ({format_number(round(of.steps.noise.low))} examples): critical batch sizes from"
    text += f" {format_number(round(of.steps.low))} up to {format_number(round(of.steps.high))} were"
    text += " allowed for."
    return speak("undecided_noise", text, "assumed", "noise_calibration")


def unknown_optimizer(of: Situation) -> Guard | None:
    """Speaks where no rule says how the optimizer's constants move."""
    if of.facts.optimizer_family != "other":
        return None
    text = f"No rule is known for {of.facts.optimizer_class}: its constants are kept as they are."
    return speak("unknown_optimizer", text, "assumed", "default")


def own_constants(of: Situation) -> Guard | None:
    """Speaks where the optimizer has constants that the recipe does not show and no rule moves."""
    facts, name = of.facts, of.facts.optimizer_class
    if of.chosen.global_batch_size == facts.recipe.batch_size:
        return None
    if ":" in facts.recipe.optimizer_name:
        text = f"{facts.recipe.optimizer_name} makes the optimizer: the plan moves its learning rate,"
        text += " and what else it sets, such as betas, eps or weight decay, stays. Name a torch.optim"
        text += " class in the recipe to have these moved."
    elif facts.optimizer_family == "adam" and name not in TORCH_DEFAULTS:
        text = f"{name}'s learning rate is moved by Adam's rule; its other constants stay as they are,"
        text += " but for those that the recipe names: no rule is known for them."
    else:
        return None
    return speak("own_constants", text, "assumed", "default")


def stability(of: Situation) -> Guard | None:
    """Speaks where the rate was tried at the planned batch, or rises without having been."""
    task, found = shlex.quote(of.facts.spec), of.stability
    if found is None:
        if of.rate <= of.facts.recipe.lr:
            return None
        text = f"The learning rate rises to {of.rate / of.facts.recipe.lr:.2f} x today's. That it"
        text += f" trains stably is assumed: `rightbatch plan {task} --check-lr` measures it."
        return speak("stability", text, "assumed", "default")
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
    return speak("stability", text, "measured", "rate_trials")


def lower_precision(of: Situation) -> Guard | None:
    """Speaks where the plan computes in another type than today: its speed says nothing of accuracy."""
    mine, today = of.chosen.precision, of.facts.recipe.precision
    if mine in {today, "fp32"}:
        return None
    text = f"{mine} in place of {today} rounds matrix products more coarsely. That this leaves the"
    text += " target in reach is assumed: step times cannot show it, `rightbatch validate"
    text += f" {shlex.quote(of.facts.spec)} --plan plan.toml` measures it."
    return speak("lower_precision", text, "assumed", "default")


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
    return speak("not_here", text, "derived", "williams2009")
