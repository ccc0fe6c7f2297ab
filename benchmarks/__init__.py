"""Benchmarks; results/ has their reports. Nothing here is in the wheel."""
