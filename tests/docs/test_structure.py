"""The picture of who may import whom, and the house limits. The tables here are the documentation.

A module may import at its top those in its row and in the rows above, and errors.
"""

from __future__ import annotations

import ast

import pytest
from conftest import ROOT

PACKAGE = ROOT / "chatterbox_opt"
LEVELS = [  # from the ground up; a level imports only from levels below it (or listed siblings)
    {"errors", "lacks"},
    {"blocked", "card", "heap", "lanes", "team"},
    {"tiles", "kernel_launch"},
    {"amx", "softmax", "gemv", "decode_attention", "kernel_ends", "flow_kernels"},
    {"gemm"},
    {"decode_linear", "kv_quantization"},
    {"kernel_trial", "compiled_integers", "compiled_flow", "quantised", "cpu_bfloat16"},
    {"compiled_t3"},
    {"weight_only"},
    {
        "copier",
        "files",
        "flat",
        "shapes",
        "text",
        "sampling",
        "lean",
        "hardware",
        "naming",
        "packing",
        "spoken",
        "wer",
        "blank",
    },
    {"profile", "attention"},
    {
        "audio",
        "speech",
        "guard",
        "jobs",
        "manifest",
        "models",
        "plan",
        "cache",
        "sampler",
        "offload",
        "voice_store",
        "watermark",
        "estimator",
        "rows",
    },
    {"ragged", "voice", "t3", "hift", "fallback", "console", "ears", "verify", "weight_cache"},
    {"slots", "integer_step"},
    {"fused_step"},
    {"flow", "vocoder", "decoding", "batch", "batch_display", "book", "options", "workers"},
    {"graphs", "t3_weights", "estimator_weights"},
    {"reader"},
    {"beside"},
    {"attempts", "pipeline", "report", "chart", "processes", "cluster"},
    {"schedule", "finishing"},
    {"loading", "upstream", "executors"},
    {"speakers"},
    {"engine", "random_weights", "doctor"},
    {"provider", "subjects"},
    {"ceilings", "cold"},
    {"bench"},
    {"commands", "batch_command"},
    {"cli"},
]
COMPILED = (
    "lanes",
    "tiles",
    "amx",
    "softmax",
    "compiled_integers",
    "compiled_t3",
    "compiled_flow",
)  # by numba, when they are imported
STAGES = (
    "t3",
    "flow",
    "estimator",
    "attention",
    "vocoder",
    "hift",
    "rows",
    "cache",
    "ragged",
    "integer_step",
    "fused_step",
    "quantised",
    "cpu_bfloat16",
    *COMPILED,
    "gemv",
    "gemm",
    "decode_linear",
    "decode_attention",
    "kv_quantization",
    "kernel_ends",
    "flow_kernels",
    "kernel_launch",
    "kernel_trial",
    "sampler",
    "decoding",
    "slots",
    "graphs",
    "voice",
)
LIGHT = ("errors", "lacks", "chart", "ears", "wer", "spoken", "files", "shapes", "text", "sampling", "audio", "models", "plan", "profile",
         "voice_store", "weight_cache", "report", "console", "commands", "cli", "__init__",
         "speech", "guard", "jobs", "manifest", "naming", "verify", "batch", "book", "batch_display", "batch_command", "options",
         "workers", "processes", "cluster", "executors")  # fmt: skip


FACES = ("cli", "commands", "console", "options", "batch_command", "batch_display")


def modules() -> dict[str, ast.Module]:
    return {path.stem: ast.parse(path.read_text()) for path in sorted(PACKAGE.glob("*.py"))}


MODULES = modules()


def imports(tree: ast.Module, *, everywhere: bool) -> set[str]:
    """Dotted names imported at module level, outside TYPE_CHECKING; or anywhere at all."""
    found: set[str] = set()
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(names: set[str]) -> set[str]:
    return {n.split(".")[1] for n in names if n.startswith("chatterbox_opt.")} & set(MODULES)


def test_every_module_has_its_level():
    assert set().union(*LEVELS) | {"__init__"} == set(MODULES)


@pytest.mark.parametrize("name", [n for n in MODULES if n != "__init__"])
def test_imports_go_down(name):
    level = next(i for i, names in enumerate(LEVELS) if name in names)
    allowed = set().union(*LEVELS[:level])
    assert ours(imports(MODULES[name], everywhere=False)) <= allowed


@pytest.mark.parametrize("name", LIGHT)
def test_what_answers_quickly_imports_no_torch_at_its_top(name):
    heavy = (
        "torch",
        "chatterbox.",
        "librosa",
        "transformers",
        "perth",
        "safetensors",
        "tokenizers",
    )
    assert not {n for n in imports(MODULES[name], everywhere=False) if n.startswith(heavy)}


@pytest.mark.parametrize("name", STAGES)
def test_stages_know_no_plan(name):
    assert not ours(imports(MODULES[name], everywhere=True)) & {"plan", "engine", "cli", "loading"}


def calls(tree: ast.Module) -> set[str]:
    return {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}


@pytest.mark.parametrize("name", [n for n in MODULES if n not in FACES])
def test_only_the_command_line_prints_and_exits(name):
    assert not calls(MODULES[name]) & {"print", "sys.exit", "exit"}
    assert not {
        n for n in imports(MODULES[name], everywhere=True) if n.split(".")[0] in ("rich", "typer")
    }


@pytest.mark.parametrize("name", [n for n in MODULES if n not in ("hardware", "doctor", "card")])
def test_only_hardware_asks_the_card(name):
    asked = {c for c in calls(MODULES[name]) if c.startswith("torch.cuda.")}
    if name == "copier":  # it asks nothing, it tells
        asked -= {"torch.cuda.Stream", "torch.cuda.stream", "torch.cuda.current_stream"}
    measuring = {"torch.cuda.synchronize", "torch.cuda.max_memory_allocated"}
    measuring |= {"torch.cuda.is_available", "torch.cuda.Event"}
    assert asked <= {"torch.cuda.empty_cache"} | (
        measuring if name in ("bench", "ceilings", "subjects") else set()
    )


def test_nothing_catches_everything_and_nothing_is_global():
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Global), name
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else ""
                assert caught not in ("", "Exception", "BaseException"), f"{name}:{node.lineno}"


def test_nothing_happens_at_import():
    """No call at module level but constants, loggers, type variables and Typer's tables."""
    fine = {"logging.getLogger", "TypeVar", "re.compile", "Sampling", "Shapes", "T3Shape", "FlowShape",
            "threading.Lock", "_File", "tuple", "VocoderShape", "VoiceShape", "typer.Typer", "typer.Option", "Preset", "main", "next", "', '.join", "extension.strip", "fields", "ctypes.CFUNCTYPE", "getattr", "tl.constexpr"}  # fmt: skip
    for name, tree in MODULES.items():
        assert name in COMPILED or not ours(imports(tree, everywhere=False)) & set(COMPILED), name
        if name == "spoken" or name in COMPILED:
            continue  # patterns and what they become, by pure functions; see the line above
        for node in tree.body:
            if isinstance(
                node, (ast.FunctionDef, ast.ClassDef, ast.If, ast.Import, ast.ImportFrom)
            ):
                continue
            found = {c for c in calls(ast.Module([node], [])) if not c.startswith("app.")}
            assert found <= fine, f"{name}:{node.lineno} {found - fine}"


# by what compiles them
TYPED_LATER = {"triton.jit", "njit", "_compile", "cfunc", "intrinsic"}


def test_house_limits():
    lengths = []
    for name, tree in MODULES.items():
        assert len((PACKAGE / f"{name}.py").read_text().splitlines()) <= 350, name
        assert ast.get_docstring(tree), f"{name} does not say what it knows"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                body = (node.end_lineno or 0) - node.body[0].lineno + 1
                lengths.append(body)
                assert body <= 80, f"{name}.{node.name} has {body} lines"
                if {ast.unparse(d).split("(")[0] for d in node.decorator_list} & TYPED_LATER:
                    continue  # a card's kernel gets all as arguments
                every = [*node.args.args, *node.args.kwonlyargs]
                assert all(a.annotation or a.arg in ("self", "cls") for a in every), node.name
                assert len(every) <= 9 or name in FACES, f"{name}.{node.name}"
    assert sorted(lengths)[int(len(lengths) * 0.9)] <= 40


def test_public_functions_are_documented():
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                simple = node.name in ("forward", "emit", "render", "path", "head_dim", "like")
                assert simple or ast.get_docstring(node) or _nested(tree, node), (
                    f"{name}.{node.name}"
                )


def _nested(tree: ast.Module, node: ast.AST) -> bool:
    functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f is not node]
    return any(node in ast.walk(f) for f in functions)


def test_nothing_of_one_machine_is_in_the_repository():
    bad = ("/ro" + "ot/", "/wo" + "rk/", "files.python" + "hosted")
    for path in [
        *ROOT.glob("*.*"),
        *ROOT.glob("Makefile"),
        *(ROOT / "tests").glob("*.py"),
        *PACKAGE.glob("*.py"),
    ]:
        ours = path.is_file() and path.name != ".git"  # a worktree's names its place
        text = path.read_text(errors="ignore") if ours else ""
        assert not [b for b in bad if b in text], path
