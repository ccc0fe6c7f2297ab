"""The structure of the package, beyond what import-linter checks (pyproject.toml): what is
imported when, who prints, house limits, and words that are not used.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest
from helpers.common import ROOT

PACKAGE = ROOT / "chatterbox_opt"
# imported before torch: by --help, by usage errors, and by worker processes before they load
LIGHT = ("__init__", "__main__", "errors", "version", "sampling", "request", "script", "cli", "batch", "config", "text",
         "eval", "utils.arguments", "utils.wave", "utils.atomic_file", "utils.cache_directory", "utils.closing", "utils.damage", "utils.event_queue", "utils.lazy_reasons", "utils.librosa_import", "utils.paths", "utils.printable", "utils.quiet", "utils.small_file", "utils.steps", "audio.containers", "audio.decoders", "audio.encoders", "audio.files", "audio.levels", "audio.loudness", "audio.player", "audio.prebuffer", "audio.recordings", "audio.silence", "audio.speech", "audio.streaming", "audio.tags", "audio.tempo", "bench.chart", "bench.report",
         "checkpoints.digests", "checkpoints.families", "checkpoints.file_sizes", "checkpoints.flows", "checkpoints.hub", "checkpoints.registry", "checkpoints.sealed_file", "checkpoints.weight_cache", "engine.spec", "engine.probe", "engine.conversion.request",
         "engine.quality", "engine.sequence", "server.settings", "voices.computed_voices", "voices.saved_voices", "voices.store", "words.caption_files", "words.cues", "words.support", "words.word", "words.written")  # fmt: skip
COMPILED = "kernels.cpu."  # numba compiles these when they are imported
NOT_COMPILED = (
    "kernels.cpu.openmp",
    "kernels.cpu.onednn",
    "kernels.cpu.bf16_ops",
    "kernels.cpu.conv.ops",
)
HEAVY = (
    "torch",
    "av",
    "chatterbox",
    "librosa",
    "transformers",
    "perth",
    "safetensors",
    "tokenizers",
)
FOLDER = range(2, 17)  # files besides __init__.py, or subfolders


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {name_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def path_of(name: str) -> Path:
    return PACKAGE / (name.replace(".", "/") + ".py")


def within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def imports(tree: ast.Module) -> set[str]:
    """Dotted names imported at module level, outside TYPE_CHECKING."""
    imported: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    return imported


def calls(tree: ast.AST) -> set[str]:
    return {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}


def test_the_top_of_the_package_is_a_short_list():
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_a_folder_says_what_it_is_for_and_is_neither_bare_nor_crowded():
    for folder in sorted({path.parent for path in PACKAGE.rglob("*.py")}):
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder
        entries = [path for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()]
        entries = [path.name for path in entries if path.name not in ("__init__.py", "__pycache__")]
        assert len(entries) in FOLDER or folder == PACKAGE, f"{folder}: {entries}"


def test_what_answers_quickly_imports_no_torch_at_its_top():
    for name in MODULES:
        if not within(name, LIGHT):
            continue
        names = imports(MODULES[name])
        ours = {n for n in names if n.startswith("chatterbox_opt")}
        heavy = {n for n in names - ours if n.split(".")[0] in HEAVY}
        assert not heavy, f"{name} imports {heavy}"
        for imported in {n.removeprefix("chatterbox_opt.") for n in ours}:
            module = imported if imported in MODULES else imported.rpartition(".")[0] or "__init__"
            if module in MODULES:
                assert within(module, LIGHT), f"{name} imports {module}"


def test_only_the_command_line_prints_and_exits():
    for name, tree in MODULES.items():
        if not within(name, ("cli", "__main__")):
            assert not calls(tree) & {"print", "sys.exit", "exit"}, name


def test_only_probes_and_the_runtime_call_torch_cuda():
    allowed = ("engine.probe", "cli.doctor.command", "runtime.cuda", "runtime.weight_transfer")
    measuring = {"torch.cuda.synchronize", "torch.cuda.max_memory_allocated"}
    measuring |= {"torch.cuda.is_available", "torch.cuda.Event", "torch.cuda.empty_cache"}
    for name, tree in MODULES.items():
        called = {c for c in calls(tree) if c.startswith("torch.cuda.")}
        called -= measuring if within(name, ("bench",)) else {"torch.cuda.empty_cache"}
        assert not called or name in allowed, f"{name}: {called}"


def test_nothing_catches_everything_and_nothing_is_global():
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Global), f"{name}:{node.lineno}"
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else ""
                catch_all = caught in ("", "Exception", "BaseException")
                assert not catch_all, f"{name}:{node.lineno}"


def compiled(name: str) -> bool:
    return name.startswith(COMPILED) and name not in NOT_COMPILED


def test_nothing_happens_at_import():
    """No call at module level but constants, loggers, type variables and Typer's tables."""
    fine = {"logging.getLogger", "TypeVar", "re.compile", "Sampling", "ModelConfig", "Snapshot", "Pin", "Kind", "Codec", "Attribution", "dataclasses.replace", "StagePlan", "T3Config", "FlowConfig", "TextRules",
            "threading.Lock", "_File", "tuple", "VocoderConfig", "VoiceEncoderConfig", "typer.Typer", "typer.Option", "Preset", "Use", "main", "next", "', '.join", "extension.strip", "fields", "ctypes.CFUNCTYPE", "getattr", "tl.constexpr"}  # fmt: skip
    defines = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If)
    for name, tree in MODULES.items():
        ours = {n.removeprefix("chatterbox_opt.") for n in imports(tree)}
        modules = {n if n in MODULES else n.rpartition(".")[0] for n in ours}
        assert compiled(name) or not {n for n in modules if compiled(n)}, name
        if name.startswith("text.english.") or name == "__main__" or compiled(name):
            continue  # patterns and what they become, by pure functions; the entry; compiled code
        for node in tree.body:
            if not isinstance(node, (*defines, ast.Import, ast.ImportFrom)):
                called = {c for c in calls(ast.Module([node], [])) if not c.startswith("app.")}
                assert called <= fine, f"{name}:{node.lineno}: {called - fine}"


# by what compiles them
TYPED_LATER = {"triton.jit", "njit", "_compile", "cfunc", "intrinsic", "entry_point"}
TYPED_LATER |= {"_exact", "_inline", "_sums"}


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or 0) - function.body[0].lineno + 1


def test_house_limits():
    for name, tree in MODULES.items():
        assert len(path_of(name).read_text().splitlines()) <= 350, name
        assert ast.get_docstring(tree), name
        for function in functions(tree):
            place = f"{name}.{function.name}"
            assert length(function) <= 80, f"{place} has {length(function)} lines"
            if {ast.unparse(d).split("(")[0] for d in function.decorator_list} & TYPED_LATER:
                continue  # a kernel gets everything as arguments
            every = [*function.args.args, *function.args.kwonlyargs]
            assert all(a.annotation or a.arg in ("self", "cls") for a in every), place
            assert len(every) <= 10 or within(name, ("cli",)), place


def test_nine_of_ten_functions_are_short():
    lengths = sorted(length(function) for tree in MODULES.values() for function in functions(tree))
    assert lengths[int(len(lengths) * 0.9)] <= 22


def documented_methods() -> set[str]:
    """Names of the methods that a Protocol of the package documents."""
    kinds = [n for tree in MODULES.values() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    protocols = [kind for kind in kinds if "Protocol" in " ".join(map(ast.unparse, kind.bases))]
    methods = [n for kind in protocols for n in kind.body if isinstance(n, ast.FunctionDef)]
    return {method.name for method in methods if ast.get_docstring(method)}


INHERITED = documented_methods() | {
    "forward",
    "emit",
    "render",
    "path",
    "head_dim",
    "like",
    "tables",
}


def test_public_functions_are_documented():
    """A method that implements a documented one of a Protocol needs no words of its own."""
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(
                node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            ) and not node.name.startswith("_"):
                words, place = ast.get_docstring(node) or "", f"{name}.{node.name}"
                assert words or node.name in INHERITED or _nested(tree, node), place
                assert not re.match(r"See ``\w+``\.$", words), place


def _nested(tree: ast.Module, node: ast.AST) -> bool:
    return any(node in ast.walk(f) for f in functions(tree) if f is not node)


def test_nothing_of_one_machine_is_in_the_repository():
    bad = ("/ro" + "ot/", "/wo" + "rk/", "files.python" + "hosted")
    folders = ("tests", "chatterbox_opt", "benchmarks", "training", "docs", "examples")
    texts = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    for path in [*ROOT.glob("*.*"), ROOT / "Makefile", *texts]:
        if path.is_file() and path.suffix in (".py", ".md", ".toml", ".yaml", ".json", ""):
            text = path.read_text(errors="ignore") if path.name != ".git" else ""
            assert not [b for b in bad if b in text], path


# words of a private language, and the field's for them
UNUSED = {
    "card": "GPU", "cards": "GPUs", "lacks": "unsupported", "beside": "overlapped with",
    "said": "generated", "spoken": "generated", "turn": "iteration", "turns": "alternates",
    "heap": "malloc", "team": "threads", "lane": "stream or SIMD vector", "lanes": "vectors",
    "lean": "minimal", "blank": "uninitialized", "way": "backend", "wish": "requested",
}  # fmt: skip


def identifiers(path: Path) -> set[str]:
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    names = {token.string for token in tokens if token.type == tokenize.NAME}
    return {word for name in names for word in re.split(r"_|(?<=[a-z])(?=[A-Z])", name.strip("_"))}


@pytest.mark.parametrize(
    "folder", ["chatterbox_opt", "benchmarks", "training", "examples", "tests"]
)
def test_identifiers_are_the_fields_words(folder):
    for path in (ROOT / folder).rglob("*.py"):
        used = {word.lower() for word in identifiers(path)} & set(UNUSED)
        assert not used, f"{path}: {used}; use {[UNUSED[word] for word in used]}"


def test_the_documentation_uses_the_fields_words():
    prose = {"card", "cards", "lacks", "beside", "heap", "team", "lane", "lanes", "lean", "wish"}
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        if page.name != "performance-log.md":  # a diary: entries stay as they were written
            words = set(re.findall(r"[a-z]+", page.read_text().lower()))
            assert not words & prose, f"{page.name}: {words & prose}"
