"""The stages, each a module and a process: python -m benchmarks.gpu.stages.NAME --help

Each has ``run(context)``. Shared code is in benchmarks.gpu and its measuring package.
"""
