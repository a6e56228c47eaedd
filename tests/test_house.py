"""The order of the house: which module may import which, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "jaxfast"

# Floors, from the ground up: a module imports from its own floor or from one below.
FLOORS = [
    {"schedules", "optim", "losses", "metrics", "precision", "mesh", "plot", "kernels", "messages", "_extras"},
    {"models", "pretrained", "data", "augment", "mix"},
    {"training"},
    {"interpret", "export"},
    {"learner"},
    {"vision", "text", "text_learner", "tabular", "collab"},
    {"sweep", "rehearse", "__main__"},
]
FORBIDDEN = [("models", {"training", "optim"}), ("data", {"models"})]


def part_of(module: str) -> str:
    return module.split(".")[1]


def imports(path: Path):
    """The parts of jaxfast that a file imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxfast"):
            if node.module == "jaxfast":
                yield from (alias.name for alias in node.names)
            else:
                yield part_of(node.module)
        elif isinstance(node, ast.Import):
            yield from (part_of(alias.name) for alias in node.names if alias.name.startswith("jaxfast."))


def files():
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        part = relative.parts[0].removesuffix(".py")
        if part != "__init__":
            yield relative.as_posix(), part, set(imports(path))


def test_every_part_has_a_floor():
    known = set().union(*FLOORS)
    assert {part for _, part, _ in files()} <= known


@pytest.mark.parametrize(
    "name, part, imported", list(files()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_arrows_run_one_way(name, part, imported):
    floor = {other: i for i, parts in enumerate(FLOORS) for other in parts}
    upward = {other for other in imported if other in floor and floor[other] > floor[part]}
    assert not upward, f"{name} imports {upward} from a floor above"
    for subject, objects in FORBIDDEN:
        assert part != subject or not imported & objects, f"{name} imports {imported & objects}"


@pytest.mark.parametrize("part", ["schedules", "optim"])
def test_schedules_and_optimizers_need_jax_and_optax_alone(part):
    allowed = {"schedules", "optim"} if part == "optim" else set()
    for name, owner, imported in files():
        assert owner != part or imported <= allowed, name


HEAVY = [
    "tensorflow",
    "tensorflow_datasets",
    "grain",
    "pandas",
    "matplotlib",
    "tokenizers",
    "sklearn",
    "orbax",
    "rich",
    "PIL",
    "simplejpeg",
    "cykooz_resizer",
    "array_record",
]


@pytest.mark.parametrize(
    "statement, absent",
    [
        ("import jaxfast", [*HEAVY, "flax"]),
        ("import jaxfast.schedules, jaxfast.optim", [*HEAVY, "flax"]),
        (
            "import jaxfast; jaxfast.Learner",
            ["tensorflow", "tensorflow_datasets", "grain", "pandas", "matplotlib", "tokenizers", "sklearn"],
        ),
        (
            "from jaxfast import text, vision",
            [name for name in HEAVY if name not in ("orbax", "rich", "PIL")] + ["torch"],
        ),
    ],
)
def test_what_an_import_leaves_out(statement, absent):
    code = f"import sys; {statement}; print(*[name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_importing_sets_nothing():
    imports = "import jaxfast.vision, jaxfast.text, jaxfast.training"
    code = f"import jax; before = dict(jax.config.values); {imports}; print(before == jax.config.values)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
