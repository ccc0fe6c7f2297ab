"""Tests and benchmarks that need a CUDA GPU, in one run with a time limit: `make gpu-check`, or
`bash .whl/run.sh` on a machine without a network (`make gpu-luggage`).

Start reading in run.py (the runner), then schedule.py (the stages and their time limits),
context.py (what a stage receives) and stages/. A stage is a process of its own and every figure a
line of JSON, written to disk at once (results.py): a crash, hang or timeout costs only what was not
yet measured.
"""
