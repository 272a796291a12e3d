"""Pages as their readers find them: parsed, and drawn by a browser."""

import json
import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WATCH = """<script>
const errors = []
console.error = console.warn = (...said) => errors.push(said.join(" "))
addEventListener("error", event => errors.push(event.message))
addEventListener("securitypolicyviolation", event => errors.push(event.violatedDirective))
addEventListener("load", () => setTimeout(() => {
  for (const select of document.querySelectorAll("select")) {
    select.selectedIndex = select.options.length - 1
    select.dispatchEvent(new Event("change"))
  }
  const plots = [...document.querySelectorAll(".js-plotly-plot")].map(plot => [plot.id, {
    drawings: plot.querySelectorAll(".main-svg").length,
    marks: plot.querySelectorAll(".trace .point path, .trace path.point").length,
    lines: plot.querySelectorAll(".trace path.js-line").length,
    choices: [...new Set(plot.data.filter(t => t.visible !== false && t.meta !== undefined).map(t => t.meta))],
    ink: getComputedStyle(plot.querySelector(".xtick text")).fill,
  }])
  const wide = document.documentElement.scrollWidth > innerWidth
  document.title = JSON.stringify({ errors, plots: Object.fromEntries(plots), wide })
}, 500))
</script>"""


class Page(HTMLParser):
    """The texts of a page by their tags, the rows of its tables, all of its tags, and the figures of its plots."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {}  # by tag
        self.tables: list[list[list[str]]] = []
        self._open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        script = self.texts["script"][-1]
        self.figures = json.loads(re.search(r"const figures = (.*)\n", script)[1])

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "br"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not self._open:
            return
        self.texts[self._open[-1]][-1] += data
        if self._open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if self._open[-1] == "small":
            self.tables[-1][-1][-1] += f"|{data}"

    def table(self, number: int = 0) -> list[dict[str, str]]:
        titles, *rows = self.tables[number]
        return [dict(zip(titles, row, strict=True)) for row in rows]


def seen_by_a_browser(page: Page, folder: Path, *, dark: bool = False) -> dict[str, Any]:
    """What Chromium makes of it on a narrow screen, with the last of each choice chosen:
    errors, plots: by name, what is drawn; wide: whether the page has to be scrolled sideways.
    """
    watched = folder / "watched.html"
    watched.write_text(page.source.replace("<style>", f"{WATCH}<style>", 1), encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, *options.split(), f"--user-data-dir={profile}", "--window-size=600,2400"]
        command += [f"--blink-settings=preferredColorScheme={int(not dark)}", "--virtual-time-budget=10000"]
        dom = subprocess.run(
            [*command, "--dump-dom", watched.as_uri()], capture_output=True, text=True, timeout=120, check=True
        ).stdout
    return json.loads(re.search(r"<title>(.*?)</title>", dom)[1])
