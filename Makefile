# Two commands on a fresh machine: make demo, make test. The rest is for those who change the code.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# the name of this machine's file under benchmarks/results/
MACHINE ?= this-machine

.PHONY: demo serve test test-slow test-quality fuzz check bench bench-family gpu-check gpu-luggage pico clean

demo: $(INSTALLED)
	$(BIN)/chatterbox-opt synth "Hello, world. This voice runs on your own computer." --model pico --seed 0 -o demo.wav
	@echo
	@echo "Listen to demo.wav, then go on with:"
	@echo "  source $(VENV)/bin/activate"
	@echo "  chatterbox-opt synth \"Hello, world.\" --model pico -o hello.wav   # your own text"
	@echo "  chatterbox-opt synth \"Hello, world.\" --voice samples/speaker.flac   # Chatterbox: 3 GB, once"
	@echo "  chatterbox-opt doctor                                             # this machine"

# the server with the built-in model, and its page at http://127.0.0.1:8004
serve: $(INSTALLED)
	$(BIN)/python -m pip install -q -e ".[server]"
	$(BIN)/chatterbox-opt serve --model pico

# a process a core, each with one thread: half of the time
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: $(INSTALLED)
	$(BIN)/python -m pip install -q --group browser
	$(BIN)/pytest -m slow --durations=5

test-quality: $(INSTALLED)
	$(BIN)/python -m pip install -q -e ".[ears]"
	$(BIN)/pytest -m quality -s

# 10,000 inputs of each kind to whatever reads files and texts, in a quarter of an hour
FUZZ_EXAMPLES ?= 10000
fuzz: $(INSTALLED)
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) OMP_NUM_THREADS=1 $(BIN)/pytest tests/fuzz tests/cli/test_printable.py -n auto --maxprocesses 4 --durations=10

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	mkdir -p benchmarks/results
	$(BIN)/chatterbox-opt bench --output benchmarks/results/$(MACHINE).json --markdown benchmarks/results/$(MACHINE).md
	$(BIN)/python benchmarks/readme.py benchmarks/results/$(MACHINE).json

# all models of the family at full shapes, random weights (8 GB in build/family, deleted at the end)
bench-family: $(INSTALLED)
	$(BIN)/python -m benchmarks.family build/family --name $(MACHINE)-family

# all that needs a CUDA GPU, in nine minutes; figures are on disk as soon as they are known
gpu-check: $(INSTALLED)
	mkdir -p build/gpu && rm -f build/gpu/results.jsonl
	$(BIN)/python -m benchmarks.gpu.run --out build/gpu; status=$$?; \
	$(BIN)/python -m benchmarks.gpu.report build/gpu/results.jsonl benchmarks/results/$(MACHINE)-gpu; \
	exit $$status

# the folder .whl/, for a machine with a GPU and no network: there OUT=results bash .whl/run.sh
# with a Python 3.12, torch 2.11 and Triton 3.6: make gpu-luggage LUGGAGE="--kernels --python PYTHON"
LUGGAGE ?=
gpu-luggage: $(INSTALLED)
	$(BIN)/python -m benchmarks.gpu.luggage $(LUGGAGE)

# the built-in model from nothing; Debian's wordnet-base has the text. Resumes where it stopped.
# glibc keeps freed memory: otherwise a third of T3's training is page faults
pico: export MALLOC_MMAP_MAX_ = 0
pico: export MALLOC_TRIM_THRESHOLD_ = 100000000000
pico: $(INSTALLED)
	$(BIN)/python -m pip install -q -e ".[ears]" --group recipe
	$(BIN)/python -m training.pico.data sound --count 6500
	$(BIN)/python -m training.pico.data codes --count 150000
	$(BIN)/python -m training.pico.train_vocoder --minutes 440
	$(BIN)/python -m training.pico.train_flow --minutes 186
	$(BIN)/python -m training.pico.train_encoders --minutes 48
	$(BIN)/python -m training.pico.train_t3 --minutes 183
	$(BIN)/python -m training.pico.pack
	$(BIN)/python -m training.pico.parts
	$(BIN)/python -m training.pico.evaluate --recogniser tiny.en --recogniser base

clean:
	rm -rf build dist demo.wav .pytest_cache .mypy_cache .ruff_cache .hypothesis

# without -q: torch alone is up to several GB, and pip shows what it downloads
$(INSTALLED): pyproject.toml
	@echo "Installing into $(VENV): PyTorch and the other packages, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -U "pip>=25.1"
	$(BIN)/python -m pip install -e . --group dev
	touch $(INSTALLED)
