"""``report.html`` of a training: its card as curves and tables, one file that loads nothing else.

Works from ``card.json`` alone and draws what it finds there: cards of other versions and of other
kinds of training may lack metrics or have more of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from testbed.plots import HEIGHT, WIDTH, Series
from testbed.report_elements import Figure, counted
from testbed.report_page import REPORT, render_page
from testbed.result_rows import ResultsError, replace_file
from testbed.svg import MISSING, Scale, Svg, fixed, padded, path_through, tick_label

CARD = "card.json"
TRAIN_COLOUR, VALID_COLOUR = 0, 1
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 16.0, 34.0, 42.0
_LABEL_LINE, _CHOSEN_LINE = 12.0, 28.0  # base lines of the texts above the axes
_CHOSEN_ROOM = 56.0  # half the width of the text at the chosen epoch
_MOST_TICKS = 12
#: Columns of an epoch that are no metrics.
_NO_METRICS = ("epoch", "learning_rate", "wall_s")
_SECONDS_PER_MINUTE = 60


@dataclass(frozen=True, slots=True)
class Metric:
    """How a column of the epochs is shown.

    Attributes:
        title: of its figure.
        column: heading in the table.
        note: below its figure.
        decimals: in the table.
        is_share: whether it is shown in per cent.
    """

    title: str
    column: str
    note: str
    decimals: int = 3
    is_share: bool = False


METRICS: Mapping[str, Metric] = {
    "train_loss": Metric("Loss", "loss", "", 4),
    "valid_loss": Metric("Loss", "held-out loss", "", 4),
    "valid_qoe": Metric(
        "QoE where the model itself leads",
        "QoE",
        "QoE per chunk of the sessions that the model played on the validation traces.",
    ),
    "valid_accuracy": Metric(
        "Labels met",
        "labels met %",
        "Share of the held-out decisions in which the model's first choice is the label.",
        1,
        is_share=True,
    ),
    "valid_regret": Metric(
        "Value lost",
        "value lost",
        "Mean loss of value of the model's first choice against the level that was best in "
        "hindsight, over the held-out decisions.",
    ),
    "gradient_norm": Metric(
        "Gradient", "gradient", "Mean norm over the steps of an epoch, before it is cut."
    ),
}
#: Keys of the loss figure, and the order of the figures behind it.
_LOSSES = ("train_loss", "valid_loss")
_ORDER = ("valid_qoe", "valid_regret", "valid_accuracy", "gradient_norm")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table; the chosen epoch's stands out."""

    cells: tuple[str, ...]
    is_chosen: bool = False


def write_training_report(folder: Path) -> Path:
    """Writes the report of a checkpoint into its folder, whole or not at all.

    Args:
        folder: of the checkpoint.

    Returns:
        The file.

    Raises:
        ResultsError: there is no readable card, or it has no epochs.
    """
    path = folder / CARD
    try:
        card = json.loads(path.read_bytes())
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ResultsError(f"{path}: not valid JSON: {error}") from error
    try:
        page = render_training_report(card)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ResultsError(f"{path}: not a training's card: {error!r}") from error
    report = folder / REPORT
    replace_file(report, page)
    return report


def render_training_report(card: Mapping[str, Any]) -> str:
    """The report as HTML.

    Raises:
        AttributeError, LookupError, TypeError, ValueError: the card lacks what every training has.
    """
    epochs: Sequence[Mapping[str, Any]] = card["epochs"]
    best = int(card["best_epoch"])
    if not 1 <= best <= len(epochs):
        raise ValueError(f"best_epoch {best} is not one of {len(epochs)} epochs")
    metrics = _metrics(epochs)
    pool: Mapping[str, Any] = card.get("pool", {})
    return render_page(
        "training.html.j2",
        title=f"Training: {card['backbone']} on {card['task'].upper()}",
        facts=_facts(card),
        headline=_headline(card, epochs, best),
        diverged=[str(one["what"]) for one in card.get("diverged", ())],
        figures=_figures(epochs, metrics, best),
        columns=["epoch", *(_metric(name).column for name in metrics), "seconds"],
        rows=[_epoch_row(row, metrics, best) for row in epochs],
        pool=_pool_facts(pool),
        arm_columns=_arm_columns(pool),
        arms=_arm_rows(pool),
        commands=[str(line) for line in (*pool.get("made_by", ()), card["command"]) if line],
        settings=_settings(card.get("training", {})),
    )


def _metric(name: str) -> Metric:
    return METRICS.get(name) or Metric(name.replace("_", " "), name.replace("_", " "), "")


def _metrics(epochs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Names of the columns that hold numbers, in the order in which they occur."""
    names = dict.fromkeys(name for row in epochs for name in row if name not in _NO_METRICS)
    return tuple(
        name for name in names if any(_number(row.get(name)) is not None for row in epochs)
    )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _figures(
    epochs: Sequence[Mapping[str, Any]], metrics: Sequence[str], best: int
) -> tuple[Figure, ...]:
    losses = tuple(
        _series(epochs, name, label, colour)
        for name, label, colour in zip(
            _LOSSES, ("training", "held out"), (TRAIN_COLOUR, VALID_COLOUR), strict=True
        )
        if name in metrics
    )
    rest = [name for name in _ORDER if name in metrics]
    rest += [name for name in metrics if name not in (*_LOSSES, *_ORDER)]
    figures = []
    if losses:
        note = "Means over an epoch; in training dropout is on and the weights still change."
        figures.append(Figure("Loss", curves(losses, "loss", best), note, losses))
    for name in rest:
        metric = _metric(name)
        colour = TRAIN_COLOUR if name == "gradient_norm" else VALID_COLOUR
        series = _series(epochs, name, metric.column, colour, metric)
        figures.append(Figure(metric.title, curves((series,), metric.column, best), metric.note))
    return tuple(figures)


def _series(
    epochs: Sequence[Mapping[str, Any]],
    name: str,
    label: str,
    colour: int,
    metric: Metric | None = None,
) -> Series:
    """Epochs as ``values``, the metric as ``others``."""
    shown = metric or _metric(name)
    points = [
        (float(row["epoch"]), value * (100 if shown.is_share else 1))
        for row in epochs
        if (value := _number(row.get(name))) is not None
    ]
    return Series(
        label,
        colour,
        values=[epoch for epoch, _ in points],
        others=[value for _, value in points],
        titles=[f"epoch {epoch:.0f}: {fixed(value, 4)}" for epoch, value in points],
    )


def curves(series: Sequence[Series], y_label: str, best: int) -> Markup | None:
    """Lines over the epochs, the chosen one marked; None without points."""
    points = [value for one in series for value in one.others]
    if not points:
        return None
    last = max(int(value) for one in series for value in one.values)
    svg = Svg(WIDTH, HEIGHT, f"{y_label} over the epochs")
    bottom = HEIGHT - _BOTTOM
    y = Scale(*padded(points, 0.08), bottom, _TOP)
    for value in y.ticks():
        svg.line(_LEFT, y(value), WIDTH - _RIGHT, y(value), "grid")
        svg.text(_LEFT - 6, y(value) + 4, tick_label(value), "tick", "end")
    x = Scale(0.5, last + 0.5, _LEFT, WIDTH - _RIGHT)
    every = math.ceil(last / _MOST_TICKS)
    for epoch in range(1, last + 1):
        if epoch % every == 0:
            svg.text(x(epoch), bottom + 16, str(epoch), "tick", "middle")
    svg.line(_LEFT, bottom, WIDTH - _RIGHT, bottom, "ax")
    svg.text((_LEFT + WIDTH - _RIGHT) / 2, bottom + 34, "epoch", "axis-label", "middle")
    svg.text(4, _LABEL_LINE, y_label, "axis-label")
    svg.line(x(best), _TOP, x(best), bottom, "mark")
    at = min(x(best), WIDTH - _CHOSEN_ROOM)
    svg.text(at, _CHOSEN_LINE, f"epoch {best}, chosen", "tick", "middle")
    for one in series:
        with svg.group(one.css):
            places = [(x(at), y(value)) for at, value in zip(one.values, one.others, strict=True)]
            svg.path(path_through(places), "ln")
            for index, (at_x, at_y) in enumerate(places):
                is_chosen = int(one.values[index]) == best
                svg.circle(at_x, at_y, 5.5 if is_chosen else 3.2, "mean", one.title(index))
    return svg.render()


def _epoch_row(row: Mapping[str, Any], metrics: Sequence[str], best: int) -> Row:
    cells = [str(row["epoch"])]
    for name in metrics:
        metric, value = _metric(name), _number(row.get(name))
        scaled = None if value is None else value * (100 if metric.is_share else 1)
        cells.append(fixed(scaled, metric.decimals))
    return Row((*cells, fixed(_number(row.get("wall_s")), 1)), int(row["epoch"]) == best)


def _headline(card: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]], best: int) -> list[str]:
    chosen = epochs[best - 1]
    qoe, loss = _number(chosen.get("valid_qoe")), _number(chosen.get("valid_loss"))
    said = [f"Epoch {best} of {len(epochs)} was chosen."]
    if qoe is not None:
        said.append(
            f"QoE per chunk {fixed(qoe, 3)} on the validation sessions: the highest, on the very "
            "sessions that chose it, so it flatters."
        )
    elif loss is not None:
        said.append(
            f"Loss {fixed(loss, 4)} on the held-out traces: the lowest, on the very traces that "
            "chose it, so it flatters."
        )
    planned = _number(card.get("training", {}).get("epochs"))
    patience = _number(card.get("training", {}).get("patience"))
    stopped = planned is not None and len(epochs) < planned and not card.get("diverged")
    if stopped and patience is not None and len(epochs) - best >= patience:
        said.append(
            f"Training stopped after {counted(len(epochs) - best, 'epoch')} without progress."
        )
    return said


def _facts(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    machine: Mapping[str, Any] = card.get("machine", {})
    sessions = (card.get("train_episodes"), card.get("valid_episodes"))
    weights = card.get("trained_parameters")
    commit = card.get("commit")
    facts = [
        ("backbone", card["backbone"]),
        ("trained weights", None if weights is None else f"{weights:,}"),
        (
            "sessions: training, held out",
            None if None in sessions else f"{sessions[0]}, {sessions[1]}",
        ),
        ("seed", card.get("seed")),
        ("time", _duration(card)),
        ("finished", card.get("date")),
        ("version", card.get("version")),
        (
            "commit",
            commit and str(commit)[:12] + (", modified" if card.get("is_modified") else ""),
        ),
        (
            "machine",
            machine
            and f"{counted(machine['cpus'], 'CPU')}, {counted(machine['torch_threads'], 'thread')}"
            f" of torch, {machine['device']}",
        ),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "", {})]


def _duration(card: Mapping[str, Any]) -> str:
    seconds = sum(_number(row.get("wall_s")) or 0.0 for row in card["epochs"])
    if seconds < 2 * _SECONDS_PER_MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / _SECONDS_PER_MINUTE:.0f} min"


def _pool_facts(pool: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not pool:
        return []
    facts = [
        ("sessions", str(pool["episodes"])),
        ("chunks", f"{pool['chunks']:,}"),
        ("traces", str(pool["traces"])),
        ("labelled by an expert", "every decision" if pool["has_expert"] else "not all decisions"),
        ("valued in hindsight", "every decision" if pool["has_values"] else "not all decisions"),
    ]
    for video in pool.get("videos", ()):
        ladder = ", ".join(f"{rate:g}" for rate in video["levels_kbps"])
        chunks = f"{video['chunks']} chunks of {video['chunk_s']:g} s"
        facts.append((f"video {video['name']}", f"{chunks} at {ladder} kbit/s"))
    if "duplicates_dropped" in pool:
        facts.append(("identical sessions left out", str(pool["duplicates_dropped"])))
    return facts


def _arm_columns(pool: Mapping[str, Any]) -> list[str]:
    if not pool.get("arms"):
        return ["arm", "QoE per chunk"]
    levels = range(max(len(arm["levels"]) for arm in pool["arms"]))
    quantiles = ["5 %", "median", "95 %"]
    return ["arm", "sessions", "QoE per chunk", *quantiles, *(f"level {one}" for one in levels)]


def _arm_rows(pool: Mapping[str, Any]) -> list[Row]:
    if not pool.get("arms"):
        return [Row((arm, fixed(qoe, 3))) for arm, qoe in pool.get("qoe_per_chunk", {}).items()]
    width = len(_arm_columns(pool))
    rows = []
    for arm in pool["arms"]:
        low, _, median, _, high = arm["qoe_quantiles"]
        numbers = (fixed(value, 3) for value in (arm["qoe_mean"], low, median, high))
        levels = (f"{share:.0%}" for share in arm["levels"])
        cells = [arm["arm"], str(arm["sessions"]), *numbers, *levels]
        rows.append(Row((*cells, *[MISSING] * (width - len(cells)))))
    return rows


def _settings(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name.replace("_", " "), f"{value:g}" if isinstance(value, float) else str(value))
        for name, value in training.items()
    ]
