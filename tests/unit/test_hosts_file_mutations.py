# SPDX-License-Identifier: MIT
"""hosts.yaml as people break it: used, or refused with file, line and key; nothing else."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import config
from harness.base.errors import ConfigurationError
from harness.base.resources import shipped
from harness.config.document import parse

pytestmark = pytest.mark.unit

MORE = """\
  managed:
    kind: ssh
    hostname: managed.lab.example
    port: 2222
    user: bench
    known_hosts: keys/managed
    interface: eth2
    address: 198.18.3.2/24
    boot: {method: kexec, timeout_s: 600}
    power:
      redfish:
        url: "https://bmc.lab.example:8443/redfish/v1"
        user: operator
        password: {env: BMC}
        system: "1"
        ca: bmc.pem
    console:
      netconsole: {address: 192.0.2.10, port: 6666, interface: eno1}
  other:
    kind: ssh
    hostname: other.lab.example
    interface: eth2
    address: 198.18.3.1/24
    power: {ipmi: {hostname: b, user: op, password: {file: "~/.bmc"}, cipher_suite: 17}}
    console: {command: [ssh, consoles, tail, -F, other.log]}
"""


def full() -> str:
    """The shipped file with all its examples in use, and all that it can say beside."""
    text = shipped("hosts.yaml").read_text(encoding="utf-8")
    shown = re.sub(r"^(  )# (  .*|rack:|lab:|(?:lab_)?[rt]x:)$", r"\1\2", text, flags=re.MULTILINE)
    shown = re.sub(r"^  # (compiler_cache|distcc):", r"  \1:", shown, flags=re.MULTILINE)
    return shown + MORE


FULL = full()
DATA = parse(FULL.encode()).data


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    listed = dict(enumerate(value)) if isinstance(value, list) else value
    for key, below in listed.items() if isinstance(listed, dict) else ():
        yield from places(below, (*path, key))


PLACES = list(places(DATA))

SCALARS = [
    "", "~", "null", "off", "on", "no", "yes", "true", "True", "NO", "y", "010", "0o10", "0x1F",
    "1:30", "190:20:30", "1_000", "1e3", "1e99", "1e999", ".inf", "-.INF", ".nan", "-1", "0", "-0",
    "9" * 18, "9" * 19, "9" * 400, "2001-12-14", "2001-12-14t21:59:43.10-05:00", "=", "<<", "...",
    "'  '", "\"\\0\"", "\"\\e[2J\"", "\"\\ud800\"", "\"\\U0001F600\"", "ｅｔｈ０", "٣", "é",
    "-oProxyCommand=x", "--help", "$HOME/x", "~/x", "~nobody99/x", "../../x", "/", ".", "a b",
    "'a\nb'", "!!python/object:os.system x", "!!int 3", "&a x", "*a", "{}", "[]", "[[]]", "{a: b}",
    "[1, {a: [2]}]", "{? [a] : b}", "{~: 1}", "{1: 2}", "{<<: {a: 1}}", "| \n  x", "> \n  x",
    "198.18.0.0/24", "198.18.0.255/24", "0.0.0.0/0", "255.255.255.255", "::", "224.0.0.1/4",
    "198.18.0.2/33", "198.18.0.2/024", "198.018.0.2/24", "3324317698", "00:00:00:00:00:00",
    "ff:ff:ff:ff:ff:ff", "02-00-00-00-00-02", "https://a:99999", "https://u:p@a", "https://[::1",
    "https://a/%2e", "x" * 300, "a@b:c@d",
]  # fmt: skip
RAW = [
    "\t", "\ufeff", "\r", "\x00", "\x85", "\u2028", "\x7f", "---\n", "...\n", "%YAML 1.1\n---\n",
    "%YAML 9.9\n---\n", "%TAG ! tag:x,2000:\n---\n", "# \x1b[2J\n", "? a\n", "- a\n", "{", "]", "'",
    '"', "&a", "*a", "<<: *a\n", ": ", "|", ">", "@", "`", "%", "!", "!!", "\\", "[" * 40,
    "{a: " * 40,
]  # fmt: skip
scalars = st.sampled_from(SCALARS) | st.text(max_size=12).map(lambda text: f"'{text}'")


def shown(value: Any, depth: int = 0) -> str:
    """``value`` as YAML; a str in it that begins with NUL is written as it stands."""
    pad = "  " * depth
    if isinstance(value, dict) and value:
        return "".join(
            f"{pad}{key}:"
            + (f"\n{shown(below, depth + 1)}" if isinstance(below, dict) and below else
               f" {shown(below)}\n")
            for key, below in value.items()
        )  # fmt: skip
    if isinstance(value, dict | list):
        return "{}" if isinstance(value, dict) else f"[{', '.join(map(shown, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and value.startswith("\0"):
        return value[1:]
    return f'"{value}"' if isinstance(value, str) else str(value)


@st.composite
def changed(draw: st.DrawFn) -> str:
    """The full file after one to three changes of its structure."""
    data = copy.deepcopy(DATA)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(PLACES))
        holder = data
        try:
            for part in path[:-1]:
                holder = holder[part]
            holder[path[-1]]
        except (LookupError, TypeError):
            continue  # gone by the change before
        if not isinstance(holder, dict | list):
            continue
        how = draw(st.sampled_from(["value", "remove", "rename", "move", "swap"]))
        if how == "value":
            holder[path[-1]] = "\0" + draw(scalars)
        elif how == "remove":
            del holder[path[-1]]
        elif how == "rename" and isinstance(holder, dict):
            holder[draw(scalars).split("\n")[0] or "x"] = holder.pop(path[-1])
        elif how == "move":
            data[f"x{len(data)}"] = holder[path[-1]]
        elif isinstance(holder, dict):
            other = draw(st.sampled_from(sorted(holder)))
            holder[path[-1]], holder[other] = holder[other], holder[path[-1]]
    return shown(data)


@st.composite
def spoilt(draw: st.DrawFn) -> str:
    """The full file with something put into its text."""
    text = FULL
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from(RAW) | st.text(max_size=3)) + text[at:]
    return text


def judged(path: Path) -> None:
    """Load ``path``, and hold an error to what every error has to say."""
    try:
        loaded = config.load(path)
    except ConfigurationError as error:
        told = error
    else:
        for name in loaded.beds:
            config.bed(loaded, name).model_dump_json()
        return
    assert told.exit_code == 2
    # Of the file nothing but ASCII is repeated; of ours there are … and µ.
    assert told.message.translate({0x2026: None, 0xB5: None}).isascii(), told.message
    assert told.message.replace("\n", "").isprintable(), told.message
    assert len(told.message) < 10_000
    for line in told.message.splitlines():
        assert re.match(rf"{re.escape(str(path))}(:\d+)?: \S|and \d+ more$", line), line
    first = told.message.splitlines()[0]
    assert re.match(r"[^:]+:\d+: ", first) or "expected" in first or "YAML" in first, first


def test_the_full_file_is_good(tmp_path: Path) -> None:
    for name, text in {"full": FULL, "shown": shown(DATA)}.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
        loaded = config.load(path)
        assert {"virtual", "rack", "lab"} <= set(loaded.beds)
        assert loaded.hosts["managed"].power.redfish.system == "1"  # type: ignore[union-attr]


SETTINGS = settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@SETTINGS
@given(text=changed())
def test_a_changed_file_is_good_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hosts.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    judged(path)


@SETTINGS
@given(text=spoilt())
def test_a_spoilt_file_is_good_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hosts.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    judged(path)


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-32", "iso8859-1", "cp037"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_file_of_another_editor(tmp_path: Path, codec: str, ending: str) -> None:
    path = tmp_path / "hosts.yaml"
    path.write_bytes(FULL.replace("\n", ending).encode(codec, "replace"))
    if codec in {"utf-8-sig", "iso8859-1"}:  # of which the latter is ASCII here
        assert config.load(path).default_bed == "native"
    else:
        with pytest.raises(ConfigurationError, match=r"hosts.yaml:1: (not|a control)"):
            config.load(path)


@pytest.mark.parametrize("value", SCALARS)
def test_any_value_at_any_place(tmp_path: Path, value: str) -> None:
    path = tmp_path / "hosts.yaml"
    at = SCALARS.index(value)
    for place in PLACES[at % 13 :: 13]:
        data = copy.deepcopy(DATA)
        holder = data
        for part in place[:-1]:
            holder = holder[part]
        holder[place[-1]] = "\0" + value
        path.write_bytes(shown(data).encode("utf-8", "surrogatepass"))
        judged(path)
