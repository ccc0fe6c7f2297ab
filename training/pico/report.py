"""Prints the report of an evaluation.

Responsible for the text format. Not responsible for measuring (evaluate.py).
"""

from __future__ import annotations

from typing import Any

LONGEST_LIST = 15  # misrecognized sentences that are printed; --json has all


def print_report(report: dict[str, Any]) -> None:
    """Print the result of ``evaluate`` to standard output."""
    for name, rate in report["recognisers"].items():
        print(f"{name}: {_words(rate)}")
        if len(rate["voices"]) > 1:
            for voice, part in rate["voices"].items():
                print(f"  {voice}: {_words(part)}")
        _print_wrong(name, report["sentences"])
    summary = report["summary"]
    failures = ", ".join(f"{name} {n}" for name, n in summary["failures"].items()) or "none"
    levels = summary["loudness"]
    print(f"tokens per word: {summary['tokens_per_word']:.1f}")
    print(f"cut off at max_tokens: {summary['endless_share']:.1%}")
    if summary["realtime_x"]:
        print(f"{summary['realtime_x']:.1f}x real time")
    if levels:
        bounds = f"{levels['low']:.1f} to {levels['high']:.1f}"
        print(f"loudness: {levels['mean']:.1f} LUFS ({bounds})")
    print(f"weakest watermark: {summary['weakest_watermark']:.2f}")
    print(f"failed checks, of {summary['sentences']} wavs: {failures}")


def _words(rate: dict[str, Any]) -> str:
    if rate["rate"] is None:
        return "no words"
    bounds = f"{rate['low']:.1%} to {rate['high']:.1%}"
    return f"WER {rate['rate']:.1%} of {rate['words']} words (95 %: {bounds})"


def _print_wrong(name: str, sentences: list[dict[str, Any]]) -> None:
    wrong = [(row["heard"][name], row["text"]) for row in sentences if row["heard"][name]["errors"]]
    wrong.sort(key=lambda pair: pair[0]["errors"] / max(pair[0]["words"], 1), reverse=True)
    for heard, text in wrong[:LONGEST_LIST]:
        print(f"  {heard['errors']:3d}  {text} | {heard['text']}")
    if len(wrong) > LONGEST_LIST:
        print(f"       and {len(wrong) - LONGEST_LIST} more")
