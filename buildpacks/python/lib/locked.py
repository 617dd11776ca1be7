"""Turn poetry.lock, Pipfile.lock or Pipfile into requirement lines; compare requires-python.

usage: python3 locked.py requirements FILE    (in the app's folder; lines on stdout)
       python3 locked.py runtime              (`python-3.11`, or exit 1 and why it does not fit)
Run by the system's interpreter: only its standard library is there.
"""

import json
import platform
import re
import sys
import tomllib
from pathlib import Path


def normal(name):
    """The one spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def line(name, version, marker, hashes):
    """`name==1.0 ; marker --hash=sha256:... --hash=...`"""
    text = f"{name}=={version}"
    if marker:
        text += f" ; {marker}"
    return " \\\n    ".join([text, *(f"--hash={each}" for each in hashes)])


def from_pipfile_lock(text):
    """The `default` section; `develop` stays out of a slug."""
    for name, entry in sorted(json.loads(text)["default"].items()):
        if "git" in entry:
            yield f"{name} @ git+{entry['git']}@{entry.get('ref', 'HEAD')}"
        elif "version" in entry:
            extras = f"[{','.join(entry['extras'])}]" if entry.get("extras") else ""
            version = entry["version"].removeprefix("==")
            yield line(
                name + extras, version, entry.get("markers"), sorted(entry.get("hashes", []))
            )
        else:
            raise SystemExit(f"{name} of Pipfile.lock has neither a version nor a git address")


def from_pipfile(text):
    """The `packages` section of a Pipfile that was never locked."""
    for name, wanted in tomllib.loads(text).get("packages", {}).items():
        entry = {"version": wanted} if isinstance(wanted, str) else wanted
        if "git" in entry:
            yield f"{name} @ git+{entry['git']}@{entry.get('ref', 'HEAD')}"
            continue
        extras = f"[{','.join(entry['extras'])}]" if entry.get("extras") else ""
        version = entry.get("version", "*")
        marker = f" ; {entry['markers']}" if entry.get("markers") else ""
        yield f"{name}{extras}{'' if version == '*' else version}{marker}"


def poetry_roots(project):
    """Package -> marker (or None) of what pyproject.toml itself depends on, development aside."""
    roots = {}
    for text in project.get("project", {}).get("dependencies", []):
        spec, _, marker = text.partition(";")
        roots[normal(re.match(r"\s*([A-Za-z0-9._-]+)", spec)[1])] = marker.strip() or None
    for name, wanted in project.get("tool", {}).get("poetry", {}).get("dependencies", {}).items():
        is_optional = isinstance(wanted, dict) and wanted.get("optional")
        if normal(name) != "python" and not is_optional:
            roots[normal(name)] = wanted.get("markers") if isinstance(wanted, dict) else None
    return roots


def edges(package):
    """(dependency, marker or None) of one locked package."""
    for name, wanted in package.get("dependencies", {}).items():
        for each in wanted if isinstance(wanted, list) else [wanted]:
            if isinstance(each, dict) and each.get("optional"):
                continue
            yield normal(name), each.get("markers") if isinstance(each, dict) else None


def both(first, second):
    return f"({first}) and ({second})" if first and second else first or second


def from_poetry_lock(text, project):
    """Everything that the app's own dependencies lead to, each with when it is needed."""
    packages = {}
    for package in tomllib.loads(text).get("package", []):
        packages.setdefault(normal(package["name"]), []).append(package)
    needed = {}  # name -> markers under which something needs it; None: always
    pending = list(poetry_roots(project).items())
    while pending:
        name, marker = pending.pop()
        known = needed.setdefault(name, set())
        if None in known or marker in known or len(known) > 8:
            continue
        known.add(marker)
        for package in packages.get(name, []):
            pending += [(other, both(marker, edge)) for other, edge in edges(package)]
    for name, markers in sorted(needed.items()):
        if name not in packages:
            raise SystemExit(f"poetry.lock does not hold {name}: run poetry lock and commit it")
        when = None if None in markers else " or ".join(f"({each})" for each in sorted(markers))
        for package in packages[name]:
            yield poetry_line(package, when)


def poetry_line(package, when):
    source = package.get("source", {})
    if source.get("type") == "git":
        return f"{package['name']} @ git+{source['url']}@{source['resolved_reference']}"
    if source.get("type") in {"directory", "file"}:
        return f"./{source['url']}"
    own = package.get("markers")
    hashes = sorted(each["hash"] for each in package.get("files", []))
    return line(
        package["name"],
        package["version"],
        both(own if isinstance(own, str) else None, when),
        hashes,
    )


def requires_python(project):
    """What pyproject.toml says of the interpreter, as comparisons joined by commas."""
    plain = project.get("project", {}).get("requires-python")
    poetry = project.get("tool", {}).get("poetry", {}).get("dependencies", {}).get("python", "")
    return plain or (poetry if isinstance(poetry, str) else "")


def fits(version, wanted):
    """True when `version` (a tuple) is within `>=3.9,<4`, `^3.10`, `~3.11`, `3.11.*`."""
    for part in filter(None, (each.strip() for each in wanted.split(","))):
        match = re.fullmatch(r"(>=|<=|==|!=|~=|>|<|\^|~)?\s*v?(\d+(?:\.\d+)*)(\.\*)?", part)
        if not match:
            return True  # not ours to judge
        how, bound = match[1] or "==", tuple(map(int, match[2].split(".")))
        here = version[: len(bound)]  # `==3.11` means any 3.11, whatever the letter of PEP 440
        whole = (*bound, 0, 0)[:3]
        upper = bound[0] if how == "^" else bound[: max(1, len(bound) - 1)]
        good = {
            ">=": version >= bound, "<=": version <= whole, ">": version > whole, "<": version < bound,
            "==": here == bound, "!=": here != bound, "^": version >= bound and version[0] == upper,
            "~": version >= bound and version[: min(2, len(bound))] == bound[:2],
            "~=": version >= bound and (len(bound) < 2 or version[: len(bound) - 1] == bound[:-1]),
        }[how]  # fmt: skip
        if not good:
            return False
    return True


def main(verb, *arguments):
    file = Path("pyproject.toml")
    project = tomllib.loads(file.read_text()) if file.is_file() else {}
    if verb == "runtime":
        wanted = requires_python(project)
        if not fits(sys.version_info[:3], wanted):
            raise SystemExit(
                f"the app asks for Python '{wanted}'; it would get {platform.python_version()}"
            )
        print(f"python-{sys.version_info[0]}.{sys.version_info[1]}")
        return
    name = arguments[0]
    text = Path(name).read_text()
    try:
        lines = {
            "Pipfile.lock": lambda: from_pipfile_lock(text),
            "Pipfile": lambda: from_pipfile(text),
            "poetry.lock": lambda: from_poetry_lock(text, project),
        }[name]()
        print("\n".join(lines))
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise SystemExit(f"{name} is broken: {exc}") from exc


if __name__ == "__main__":
    main(*sys.argv[1:])
