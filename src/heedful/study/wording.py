"""Numbers as a reader wants them: the report, the terminal table and the headline all write them with these."""

from __future__ import annotations

from typing import Any

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
METRICS: dict[str, dict[str, Any]] = {
    "perplexity": {"name": "test perplexity", "unit": "", "digits": 2},
    "bits_per_byte": {"name": "bits per byte", "unit": "", "digits": 4},
    "error": {"name": "test error", "unit": " %", "digits": 1},
}

# A metric of a further text has the name of the text behind this.
ON_TEXT = "@"


def metric_facts(key: str) -> dict[str, Any]:
    """Return name, unit and digits of a metric, `perplexity@NAME` being the perplexity on the further text NAME."""
    metric, _, text = key.partition(ON_TEXT)
    facts = METRICS[metric]
    return {**facts, "name": f"{facts['name'].removeprefix('test ')} on {text}"} if text else facts


def metric_value(key: str, value: float | None) -> str:
    """Write a metric: perplexity and bits per byte as they are, an error rate, in percent, with its unit."""
    if value is None:
        return NONE
    metric = metric_facts(key)
    return f"{value:.{metric['digits']}f}{metric['unit']}"


def metric_difference(key: str, value: float | None) -> str:
    """Write a difference of a metric with its sign; differences of error rates are percentage points."""
    if value is None:
        return NONE
    metric = metric_facts(key)
    unit = " points" if metric["unit"] else ""
    return f"{signed(value, metric['digits'])}{unit}"


def signed(value: float, digits: int) -> str:
    """Write `value` with a sign and a true minus; what rounds to zero has none."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{MINUS if value < 0 else '+'}{text}"


def p_value(p: float | None) -> str:
    """Write a p-value: two significant digits, never `0.000`."""
    if p is None:
        return NONE
    if p < 0.0001:
        return "< 0.0001"
    return f"{p:.4f}" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def count(value: float | None) -> str:
    """Write a count with three or four significant digits and its unit: 7,419,392 is 7.42 M."""
    if value is None:
        return NONE
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            scaled = value / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{unit}"
    return f"{value:.0f}"


def tick(value: float) -> str:
    """Write a round count at an axis: 2,500,000 is 2.5 M."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def memory(value: float | None) -> str:
    """Write a number of bytes in binary units."""
    if value is None:
        return NONE
    for size, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= size:
            scaled = value / size
            return f"{scaled:.{1 if scaled < 10 else 0}f} {unit}"
    return f"{value:.0f} B"


def ratio(value: float | None, reference: float | None) -> str:
    """Write `value / reference` as a factor such as 1.23×."""
    if value is None or not reference:
        return NONE
    return f"{value / reference:.2f}\N{MULTIPLICATION SIGN}"


def rate(value: float) -> str:
    """Write a learning rate the short way: 0.0003 is 3e-4."""
    mantissa, exponent = f"{value:e}".split("e")
    digits = f"{float(mantissa):.6g}"
    return f"{digits}e{int(exponent)}"


def listed(names: list[str]) -> str:
    """Join names as in a sentence: `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def number_of(value: int, noun: str) -> str:
    """Write `one seed`, `three seeds`, `21 runs`."""
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return f"{words[value] if value < len(words) else value} {noun}{'' if value == 1 else 's'}"
