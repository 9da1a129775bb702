"""The code stays in order: no import circles, nothing too long, few loose modules, rooms that import downwards."""

from benchmarks import structure

BELOW = {  # room -> rooms that it may import
    "commands": {"devices"},
    "devices": set(),
    "diffusion": set(),
    "models": set(),
    "weights": {"models"},
    "encoders": {"models"},
    "data": set(),
    "families": {"devices", "diffusion", "models", "weights", "encoders"},
    "training": {"devices", "diffusion", "models", "weights", "encoders", "data", "families"},
    "sampling": {"devices", "diffusion", "models", "weights", "encoders", "families", "data", "finishing"},
    "evaluation": {"data", "models", "weights", "sampling"},
    "finishing": {"commands", "data", "devices", "families", "models", "weights"},
    "page": {"commands", "devices", "diffusion", "families", "finishing", "sampling", "weights"},
    "planning": {"devices", "diffusion", "models", "weights", "encoders", "families", "sampling", "training"},
    "cli": {"devices", "diffusion", "models", "weights", "encoders", "data", "families", "training", "sampling"}
    | {"evaluation", "planning", "commands"},
}


def test_nothing_is_too_long_or_goes_in_circles():
    circles, files, functions, loose = structure.measure().values()
    assert circles == files == functions == [] and len(loose) <= 6


def test_circles_are_found():
    assert structure.circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]
    assert structure.circles({"a": {"b"}, "b": set()}) == []


def test_rooms_import_only_what_is_below_them():
    paths = {structure.module_name(path): path for path in structure.sources()}
    for name, path in paths.items():
        parts = name.split(".")
        if parts[0] != "i2v_jax" or len(parts) < 3:
            continue
        rooms = {other.split(".")[1] for other in structure.imports(path, set(paths)) if other.count(".") > 1}
        assert rooms - {parts[1]} <= BELOW[parts[1]], name
