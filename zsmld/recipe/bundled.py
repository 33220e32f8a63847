"""The recipes that come with the package."""

from zsmld.resources import resource_path


def recipe_names() -> list[str]:
    """Names of the bundled recipes, sorted."""
    return sorted(path.stem for path in resource_path("configs").glob("*.yaml"))


def recipe_header(name: str) -> dict[str, str]:
    """The comment lines that open a bundled recipe: "source", "cost", "expected result", "command"."""
    header: dict[str, str] = {}
    key = ""
    for line in resource_path("configs", f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        title, colon, rest = text.partition(": ")
        if colon and title.lower() in ("source", "cost", "expected result", "command"):
            key = title.lower()
            header[key] = rest
        elif key:
            header[key] += " " + text
    return header
