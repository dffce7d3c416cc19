"""What `make docs` makes beside the pages of docs/: the README and its like, the examples with their gallery, the
reference, and a page for each source that a page links to; links are set anew to where these are.

At the end every link within the site is followed, and what would be fetched from elsewhere is looked for. Whatever is
amiss is a warning, and with --strict ends the build.
"""

from __future__ import annotations

import ast
import logging
import posixpath
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PLACES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "reporting.md",
}
"""Files of the repository that are pages of their own, and where."""
REFERENCE = (
    "umbel", "umbel.strategies", "umbel.folds", "umbel.transforms", "umbel.samplers", "umbel.data", "umbel.analytics",
    "umbel.testing", "umbel.bench", "umbel.events", "umbel.errors",
)  # fmt: skip
MERMAID = ROOT / "build" / "mermaid.min.js"
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".proto": "protobuf", ".service": "ini"}
MOST = 40_000
"""So much is shown of a source, in characters."""
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
log = logging.getLogger("mkdocs.hooks.site")
origins: dict[str, str] = {}
"""Where in the repository the text of a page is from, by its place in the site."""
sources: set[str] = set()
"""What is shown as a source, by its path in the repository."""


class Literals(griffe.Extension):
    """A block that a docstring announces by two colons is Markdown's, too, once one of them is gone. What is in a file
    by itself ends with what stands at the head of that: its paper.
    """

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring:
            text = re.sub(r"^::\n(?=\n +\S)", "", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"::\n(?=\n +\S)", ":\n", text)
        if obj.docstring and obj.parent is obj.module and obj.name.lower() == obj.module.name and obj.module.docstring:
            obj.docstring.value += f"\n\n{obj.module.docstring.value}"


def on_config(config):
    """Pages that nobody has put into the navigation come last; diagrams are drawn where the script is there."""
    named = re.findall(r": ([\w/-]+\.md)", Path(config.config_file_path).read_text("utf-8"))
    rest = [path for path in sorted(Path(config.docs_dir).glob("**/*.md")) if path.parent.name != "pictures"]
    more = [place for path in rest if (place := path.relative_to(config.docs_dir).as_posix()) not in named]
    config.nav.append({"Reference": [{name: f"api/{name}.md"} for name in modules()]})
    if more:
        config.nav.append({"More": more})
    if MERMAID.exists():
        from pymdownx.superfences import fence_code_format

        fence = {"name": "mermaid", "class": "mermaid", "format": fence_code_format}
        config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def on_files(files, config):
    """Add what is made here."""
    for file in files.documentation_pages():
        origins[file.src_uri] = f"docs/{file.src_uri}"
    for path, place in PLACES.items():
        add(files, config, place, (ROOT / path).read_text("utf-8"), path)
    for example in examples():
        path = example.relative_to(ROOT).as_posix()
        text = f"{(example / 'README.md').read_text('utf-8')}\n## Its files\n\n{shown(example)}"
        add(files, config, f"{path}.md", text, f"{path}/README.md")
    add(files, config, "gallery.md", gallery(), "docs/gallery.md")
    for name in modules():
        add(files, config, f"api/{name}.md", reference(name), f"docs/api/{name}.md")
    for place, origin in list(origins.items()):
        file = files.get_file_from_path(place)
        for target in re.findall(LINK, prose(file.content_string)):
            path, place_there = found(target, origin)
            if place_there and place_there.startswith("source/") and path not in sources:
                sources.add(path)
                add(files, config, place_there, f"# {path}\n\n{shown(ROOT / path)}", path)
            elif place_there and files.get_file_from_path(place_there) is None:  # a picture beside an example
                files.append(File.generated(config, place_there, abs_src_path=str(ROOT / path)))
    if MERMAID.exists():
        files.append(File.generated(config, "mermaid.min.js", abs_src_path=str(MERMAID)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Have links lead to where things are in the site."""
    origin = origins[page.file.src_uri]

    def moved(match):
        target = match[1]
        _, place = found(target, origin)
        if place is None:
            return match[0]
        anchor = urldefrag(target)[1]
        there = posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")
        return f"]({there}{'#' + anchor if anchor else ''})"

    parts = re.split(CODE, markdown)
    return "".join(part if index % 2 else re.sub(LINK, moved, part) for index, part in enumerate(parts))


def on_page_content(html, page, config, files):
    """Load what draws diagrams on the pages that have one: it is large."""
    if 'class="mermaid"' not in html or not MERMAID.exists():
        return html
    script = posixpath.relpath("mermaid.min.js", page.url or ".")
    return f'{html}\n<script src="{script}"></script>'


def on_post_build(config):
    """Follow every link within the site, and see that nothing is fetched from elsewhere."""
    site = Path(config.site_dir)
    pages = {path.resolve(): Links(path) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for target in page.fetched:
            if "//" in target:
                log.warning("%s fetches %s", path.relative_to(site), target)
        for target in page.targets:
            if re.match(r"[a-z]+:|//", target) or path.name == "404.html":
                continue
            to, anchor = urldefrag(target)
            there = (path.parent / unquote(to)).resolve() if to else path
            there = there / "index.html" if there.is_dir() else there
            if not there.exists():
                log.warning("%s links to %s, which is not there", path.relative_to(site), target)
            elif anchor and there in pages and unquote(anchor) not in pages[there].ids:
                log.warning("%s links to %s, and that has no such place", path.relative_to(site), target)
    log.info("followed the links of %d pages", len(pages))


class Links(HTMLParser):
    """What a page links to (`targets`), what a browser loads with it (`fetched`), and its places (`ids`)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.fetched: set[str] = set()
        self.ids: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if "src" in given:
            self.fetched.add(given["src"])
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev", "alternate"):
            self.fetched.add(given.get("href", ""))
        if tag == "a" and "href" in given:
            self.targets.add(given["href"])
        self.targets |= self.fetched


def prose(text: str) -> str:
    return CODE.sub("", text)


def found(target: str, origin: str) -> tuple[str, str | None]:
    """What a link leads to: its path in the repository and its place in the site, None for what stays as it is."""
    path = urldefrag(target)[0]
    if not path or "://" in target or target.startswith("mailto:"):
        return "", None
    there = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
    if there in PLACES:
        return there, PLACES[there]
    example = ROOT / there.removesuffix("/README.md")
    if example in examples():
        return there, f"{example.relative_to(ROOT).as_posix()}.md"
    if there.startswith("docs/"):
        return there, there.removeprefix("docs/")
    if Path(there).suffix in (".png", ".svg", ".jpg"):
        return there, there
    if not (ROOT / there).exists():
        log.warning("%s links to %s, which is not in the repository", origin, target)
        return there, None
    return there, f"source/{there}.md"


def add(files, config, place: str, text: str, origin: str) -> None:
    origins[place] = origin
    files.append(File.generated(config, place, content=text))


def shown(path: Path) -> str:
    """A source as it is, or the text files of a folder, each to be opened."""
    if path.is_file():
        text = path.read_text("utf-8")
        rest = "" if len(text) <= MOST else "\n\nThe rest is left out here."
        return f"````{LANGUAGES.get(path.suffix, 'text')}\n{text[:MOST].rstrip()}\n````{rest}\n"
    listed = [each for each in sorted(path.iterdir()) if each.is_file() and each.name != "README.md"]
    texts = [each for each in listed if each.suffix in LANGUAGES]
    blocks = [f'??? note "{each.name}"\n\n' + indented(shown(each)) for each in texts]
    others = ", ".join(f"`{each.name}`" for each in listed if each not in texts)
    return "\n\n".join([*blocks, *([f"Beside them: {others}."] if others else [])]) + "\n"


def indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.splitlines())


@cache
def examples() -> list[Path]:
    return [path.parent for path in sorted((ROOT / "examples").glob("*/README.md"))]


def gallery() -> str:
    """All examples with what their READMEs begin with, and their picture where they have one."""
    cards = []
    for example in examples():
        text = (example / "README.md").read_text("utf-8")
        title, _, rest = text.partition("\n")
        about = next((part for part in rest.split("\n\n") if part.strip() and part.strip()[0] not in "`|!-#<"), "")
        link = f"../examples/{example.name}/README.md"
        pictures = [target for target in LINK.findall(rest) if target.endswith((".png", ".svg", ".jpg"))]
        own = [f"../examples/{example.name}/{each}" for each in pictures]
        about = re.sub(r"\]\((?!\w+://)", f"](../examples/{example.name}/", about)
        picture = f"    ![A picture of {title[2:]}]({own[0]})\n\n" if own else ""
        about = re.sub(r"(?<=[.?!])\s[^.?!]*[^.?!]$|:$", "", " ".join(about.split()))  # what leads over to a block goes
        body = f"    {about}\n\n"
        cards.append(f"-   **[{title[2:]}]({link})**\n\n{picture}{body}    `examples/{example.name}`\n")
    return "# Examples\n\n" + '<div class="grid cards" markdown>\n\n' + "\n".join(cards) + "\n</div>\n"


@cache
def modules() -> list[str]:
    """The modules of the reference: those above, and an adapter for each framework."""
    adapters = []
    for path in sorted([*(ROOT / "src" / "umbel").glob("*.py"), *(ROOT / "src" / "umbel").glob("*/__init__.py")]):
        name = path.parent.name if path.name == "__init__.py" else path.stem
        if f"``umbel.{name}``" in (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""):
            adapters.append(f"umbel.{name}")
    return [*REFERENCE, *(name for name in adapters if name not in REFERENCE)]


def reference(name: str) -> str:
    """The page of a module: what its `__all__` names, each from where it is defined; or else all that is public."""
    if not (names := public_names(name)):
        return f"# {name}\n\n::: {name}\n"
    parts = [f"# {name}\n\n::: {name}\n    options:\n      members: false\n"]
    options = "    options:\n      show_root_heading: true\n      show_root_toc_entry: true\n"
    there = {definer(other, each): (other, each) for other in modules()[1:] for each in public_names(other)}
    for public in names:
        place, own = definer(name, public), f"{name}.{public}"
        if name == "umbel" and place.startswith("umbel.errors."):
            there[place] = ("umbel.errors", public)
        if name == "umbel" and place in there:  # each is shown once, beside its like
            other, each = there[place]
            parts.append(f'<a id="{own}"></a>\n\n`{own}` is [`{other}.{each}`]({other}.md#{place}).\n')
        elif own not in REFERENCE:
            parts.append(f'<a id="{own}"></a>\n\n::: {place}\n{options}')
    return "\n".join(parts)


@cache
def public_names(module: str) -> list[str]:
    """What the `__all__` of a module names; nothing where it has none."""
    for node in tree_of(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value), key=str.lower)
    return []


def definer(module: str, name: str) -> str:
    """Where a name that a module passes on is defined: a function may be called as the module that it is in."""
    package = module.split(".") if file_of(module).name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree_of(module)):
        if (
            isinstance(node, ast.ImportFrom)
            and node.level
            and node.module
            and any(alias.name == name for alias in node.names)
        ):
            from_ = [*package[: len(package) - node.level + 1], *node.module.split(".")]
            return definer(".".join(filter(None, from_)), name)
    return f"{module}.{name}"


def file_of(module: str) -> Path:
    path = ROOT / "src" / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(file_of(module).read_text("utf-8"))
