"""Everything that needs a CUDA GPU, in one bounded run: `make gpu-check`, or `bash .whl/run.sh` on
a machine without a network (`make gpu-luggage`).

Start reading in run.py (the runner), then scheduler.py (the stages and their seconds), context.py
(what a stage is given) and stages/. A stage is a process of its own and every figure a line of JSON
on disk at once (results.py): what crashes, hangs or is cut off costs what was not yet measured.
"""
