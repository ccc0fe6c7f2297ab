"""The stages, a module and a process each: python -m benchmarks.gpu.stages.NAME --help

Each has ``run(context)``. What it needs besides the engine is in the modules above.
"""
