# SPDX-License-Identifier: MIT
"""A series as it was mailed: which mails of an mbox, or of a directory, are its patches.

Hides what mail programs do to patches: encodings, line ends, an order that is not that of the
series, replies and older versions in between. What is ambiguous is refused.
"""

from __future__ import annotations

import base64
import codecs
import contextlib
import email
import email.message
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.header import Header, decode_header, make_header
from pathlib import Path

from harness.base.errors import ConfigurationError, InfrastructureError

_FROM_LINE = re.compile(
    rb"(?:\A|(?<=\n\n)|(?<=\n\r\n))From \S[^\n]*\d\d:\d\d[^\n]*\d{4}[^\n]*\r?\n"
)
"""Begins a mail in an mbox. A changelog may have lines that begin with From, without a date."""
_BY_FORMAT_PATCH = re.compile(rb"From [0-9a-f]{40,64} Mon Sep 17 00:00:00 2001\r?\n")
_QUOTED_FROM = re.compile(rb"^>(>*From )", re.MULTILINE)
_GROUPS = re.compile(r"\s*((?:\[[^\]]*\]\s*)+)(.*)", re.DOTALL)
_REPLY = re.compile(r"\A(?:\s*(?:re|aw|fwd?|sv|wg)\s*(?:\[\d+\])?\s*:)+", re.IGNORECASE)
_PLACE = re.compile(r"(?:^|[\s\[])(\d{1,4})\s*/\s*(\d{1,4})(?=$|[\s\],])")
_VERSION = re.compile(r"(?:\b|PATCH)v(\d{1,3})\b", re.IGNORECASE)
_PATCH = re.compile(r"PATCH", re.IGNORECASE)
_DIFF = re.compile(rb"^(?:diff --git |--- \S[^\n]*\n\+\+\+ \S)", re.MULTILINE)
_BASE = re.compile(rb"^base-commit: ([0-9a-f]{7,64})\s*$", re.MULTILINE)
_NEEDS = re.compile(rb"^prerequisite-(?:patch-id|message-id|change-id): ", re.MULTILINE)
_FIXUP = re.compile(r"(?:fixup|squash|amend)! (.*)", re.DOTALL)
_NUMBERED_FILE = re.compile(r"(\d{4})-")


@dataclass(frozen=True, kw_only=True)
class Mail:
    """One mail, with line feeds alone, and the content of its text parts."""

    file: Path
    subject: str
    """Decoded, without its groups of brackets."""
    tags: str
    """Those groups."""
    id: str
    thread: frozenset[str]
    """The ids of the mails of its thread that it names, and its own."""
    reply: bool
    flowed: str
    """The parameters of format=flowed, if its lines may have been broken by it."""
    charset: str
    content: bytes
    exported: bool
    """Did git format-patch write it, rather than a mail program?"""

    @property
    def place(self) -> tuple[int, int] | None:
        """n and m of n/m."""
        found = _PLACE.search(self.tags)
        return (int(found[1]), int(found[2])) if found else None

    @property
    def version(self) -> int:
        found = _VERSION.search(self.tags)
        return int(found[1]) if found else 1

    @property
    def is_patch(self) -> bool:
        """Is it a patch of some series, and no reply?"""
        tagged = self.exported or self.place or _PATCH.search(self.tags)
        return bool(not self.reply and tagged and self.diff) and not self.is_cover

    @property
    def is_cover(self) -> bool:
        return not self.reply and self.place is not None and self.place[0] == 0

    @property
    def diff(self) -> bytes:
        """From its first diff on; empty: it has none, or quotes it."""
        found = _DIFF.search(self.content)
        return self.content[found.start() :] if found else b""

    @property
    def fixes(self) -> str | None:
        """The subject of the patch that it is to be squashed into."""
        found = _FIXUP.fullmatch(self.subject)
        return found[1].strip() if found and self.place is None else None

    @property
    def title(self) -> str:
        """As a message names it."""
        place = "/".join(map(str, self.place)) + " " if self.place else ""
        return f"{place}{self.subject!r:.90}"

    def plain(self) -> str:
        """The same mail in a form that depends on no mail program; git mailinfo reads it."""
        body = base64.encodebytes(self.content).decode("ascii")
        subject = f"{self.tags} {self.subject}".strip()
        return (
            "From: nobody <nobody@localhost.invalid>\n"
            f"Subject: {Header(subject, 'utf-8', maxlinelen=990).encode()}\n"
            "MIME-Version: 1.0\n"
            f"Content-Type: text/plain; charset={self.charset}{self.flowed}\n"
            f"Content-Transfer-Encoding: base64\n\n{body}"
        )


@dataclass(frozen=True, kw_only=True)
class Mailed:
    """A whole series: its patches in order, each with the fix-ups to be squashed into it."""

    patches: tuple[tuple[Mail, ...], ...]
    base_commit: str | None
    needs: bool
    """Does it say that it needs other patches before it?"""
    skipped: tuple[str, ...]
    """What else was found, in lines for the user."""


def read(source: Path) -> Mailed:
    """The series in ``source``: an mbox (also as .gz), a mail, or a directory of mails.

    Raises:
        ConfigurationError: there is none, more than one, or an incomplete or ambiguous one.
        InfrastructureError: it cannot be read.
    """
    mails = [_parsed(file, raw) for file, raw in _messages(source)]
    mails = list({mail.id or str(number): mail for number, mail in enumerate(mails)}.values())
    patches = [mail for mail in mails if mail.is_patch]
    if not patches:
        replies = any(mail.reply for mail in mails)
        raise ConfigurationError(
            f"{source} has no {'patch among its mails' if mails else 'mail'}",
            hint="it has only replies: add the mails they reply to"
            if replies
            else "name an mbox, or a directory that git format-patch has written",
        )
    covers = [mail for mail in mails if mail.is_cover]
    version = max(mail.version for mail in patches)
    newest, older = (
        [mail for mail in patches if (mail.version == version) is new] for new in (True, False)
    )
    # A fix-up has no version; it is for the newest.
    fixes = [mail for mail in patches if mail.fixes]
    newest, older = ([mail for mail in of if mail not in fixes] for of in (newest, older))
    _require_one_series(source, newest, older, covers)
    ordered = _ordered(source, newest)
    own = [*(mail for mail in covers if mail.version == version), *ordered]
    bases = [found[1].decode() for mail in own if (found := _BASE.search(mail.content))]
    rest = [mail for mail in mails if mail not in (*own, *fixes)]
    return Mailed(
        patches=tuple(_with_fixes(source, ordered, fixes)),
        base_commit=bases[0] if bases else None,
        needs=any(_NEEDS.search(mail.content) for mail in own),
        skipped=tuple(_told(rest, ordered)),
    )


def _told(rest: Sequence[Mail], ordered: Sequence[Mail]) -> Iterator[str]:
    mine = {mail.diff for mail in ordered}
    for mail in rest:
        if mail.reply and mail.diff:
            yield f"skipped, because it is a reply: {mail.title}, with a diff of its own"
        elif mail.is_patch and mail.diff not in mine:
            yield f"skipped, because v{ordered[0].version} is newer: {mail.title}"


def _require_one_series(
    source: Path, newest: Sequence[Mail], older: Sequence[Mail], covers: Sequence[Mail]
) -> None:
    """Raise a :class:`ConfigurationError` if there are patches of an unrelated series."""
    if not newest:
        raise ConfigurationError(f"{source} has fix-ups alone", hint="add the patches they fix")
    totals = {mail.place[1] if mail.place else 0: mail for mail in newest}
    if len(totals) > 1:
        raise _two_series(source, *list(totals.values())[:2])
    subjects = {_folded(mail) for mail in (*newest, *covers) if mail.version == newest[0].version}
    threads = frozenset[str]().union(*(mail.thread for mail in newest))
    by_version: dict[tuple[int, int], list[Mail]] = {}
    for mail in older:
        by_version.setdefault((mail.version, (mail.place or (1, 1))[1]), []).append(mail)
    for group in by_version.values():
        version = group[0].version
        same = [*group, *(cover for cover in covers if cover.version == version)]
        if not any(_folded(mail) in subjects or mail.thread & threads for mail in same):
            raise _two_series(source, newest[0], group[0])


def _folded(mail: Mail) -> str:
    return " ".join(mail.subject.lower().split())


def _two_series(source: Path, one: Mail, other: Mail) -> ConfigurationError:
    return ConfigurationError(
        f"{source} has two series: one with {one.title}, one with {other.title}",
        hint="put the mails of the one that you mean into a file of their own",
    )


def _ordered(source: Path, patches: Sequence[Mail]) -> list[Mail]:
    """``patches`` by their numbers, each once."""
    numbered = {mail.place[0]: mail for mail in patches if mail.place}
    if not numbered:
        files = {mail.file for mail in patches}
        if len(patches) == 1 or (len(files) == 1 and all(mail.exported for mail in patches)):
            return list(patches)  # git format-patch writes them in order
        by_name = [(_NUMBERED_FILE.match(mail.file.name), mail) for mail in patches]
        if len(files) == len(patches) and all(found for found, _ in by_name):
            return [mail for _, mail in sorted(by_name, key=lambda one: one[1].file.name)]
        raise ConfigurationError(
            f"{source} has {len(patches)} patches without n/m, such as {patches[0].title}: "
            "their order is not known",
            hint="git format-patch -n numbers them",
        )
    of = next(mail.place[1] for mail in numbered.values() if mail.place)
    for mail in patches:
        other = numbered[mail.place[0]] if mail.place else mail
        if mail.diff == other.diff:
            continue
        if _folded(mail) != _folded(other):
            raise _two_series(source, mail, other)
        raise ConfigurationError(
            f"{source} has two different patches {mail.title}",
            hint="remove the one that does not count; a new version is marked [PATCH v2 n/m]",
        )
    if missing := [f"{n}/{of}" for n in range(1, of + 1) if n not in numbered]:
        first = numbered[min(numbered)]
        raise ConfigurationError(
            f"{source}: {', '.join(missing)} is missing of the series with {first.title}",
            hint="the list's archive has the whole thread as an mbox",
        )
    if beyond := [mail for number, mail in numbered.items() if number > of]:
        raise ConfigurationError(
            f"{source}: {beyond[0].title} is beyond the last patch", hint="correct its subject"
        )
    return [numbered[number] for number in sorted(numbered)]


def _with_fixes(
    source: Path, ordered: Sequence[Mail], fixes: Sequence[Mail]
) -> Iterator[tuple[Mail, ...]]:
    for mail in fixes:
        if not any(_folded(one) == " ".join((mail.fixes or "").lower().split()) for one in ordered):
            raise ConfigurationError(
                f"{source}: {mail.title} fixes none of the patches",
                hint="remove it, or add the patch",
            )
    for one in ordered:
        yield (
            one,
            *(f for f in fixes if " ".join((f.fixes or "").lower().split()) == _folded(one)),
        )


def _messages(source: Path) -> Iterator[tuple[Path, bytes]]:
    """Each mail of ``source``, as it is, with the file that it is in."""
    files = [source]
    if source.is_dir():
        maildir = [source / name for name in ("cur", "new") if (source / name).is_dir()]
        files = sorted(
            file
            for directory in maildir or [source]
            for file in directory.iterdir()
            if file.is_file() and not file.name.startswith(".")
        )
    for file in files:
        try:
            text = file.read_bytes()
            if text.startswith(b"\x1f\x8b"):
                text = gzip.decompress(text)
        except FileNotFoundError as error:
            raise ConfigurationError(
                f"there is no {file}",
                hint="name an mbox, a directory of mails, a message id or a link to a list's "
                "archive",
            ) from error
        except (OSError, EOFError, zlib.error) as error:
            raise InfrastructureError(f"{file} cannot be read: {error}") from error
        starts = [found.start() for found in _FROM_LINE.finditer(text)]
        if not starts:
            if re.match(rb"[!-9;-~]+:[ \t]", text):
                yield file, text
            continue
        for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
            yield file, text[start:end]


def _parsed(file: Path, raw: bytes) -> Mail:
    exported = _BY_FORMAT_PATCH.match(raw) is not None
    if raw.startswith(b"From "):
        raw = _QUOTED_FROM.sub(rb"\1", raw.partition(b"\n")[2])
    if b"\r\n" in raw.partition(b"\n")[0] + b"\n":
        raw = raw.replace(b"\r\n", b"\n")
    mail = email.message_from_bytes(raw)
    content, charset = _content(mail)
    found = _GROUPS.fullmatch(line := _REPLY.sub("", whole := _header(mail, "Subject")))
    tags, subject = (found[1].strip(), found[2]) if found else ("", line)
    named = " ".join(_header(mail, name) for name in ("References", "In-Reply-To", "Message-ID"))
    kind = _header(mail, "Content-Type").lower()
    flowed = "; format=flowed" if re.search(r'format="?flowed', kind) else ""
    if flowed and re.search(r'delsp="?yes', kind):
        flowed += "; delsp=yes"
    return Mail(
        file=file,
        subject=subject.strip(),
        tags=tags,
        id=_header(mail, "Message-ID"),
        thread=frozenset(re.findall(r"<[^<>]+>", named)),
        reply=whole != line,
        flowed=flowed,
        charset=charset,
        content=content,
        exported=exported,
    )


def _header(mail: email.message.Message, name: str) -> str:
    """A header in one line, decoded; bytes that it must not have are taken for UTF-8."""
    for key, value in mail.raw_items():
        if key.lower() == name.lower():
            text = str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            with contextlib.suppress(LookupError, ValueError, email.errors.HeaderParseError):
                text = str(make_header(decode_header(text)))
            return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    return ""


def _content(mail: email.message.Message) -> tuple[bytes, str]:
    """The text parts of ``mail`` with line feeds alone, and their character set."""
    parts: list[bytes] = []
    charset = ""
    for part in mail.walk():
        if part.get_content_maintype() != "text" or part.get_content_subtype() == "html":
            continue
        payload = part.get_payload(decode=True)
        if isinstance(payload, bytes):
            parts.append(payload)
            charset = charset or str(part.get_content_charset() or "")
    content = b"\n".join(parts)
    if b"\r\n" in content and not _mixed(content):
        content = content.replace(b"\r\n", b"\n")
    return content, _charset_of(content, charset)


def _mixed(content: bytes) -> bool:
    """Does a diff of it change a file with CRLF, while the mail itself has LF?"""
    headers = re.findall(rb"^(?:diff --git |--- |\+\+\+ |@@ )[^\n]*$", content, re.MULTILINE)
    return any(not line.endswith(b"\r") for line in headers)


def _charset_of(content: bytes, declared: str) -> str:
    for charset in ("utf-8", declared):
        with contextlib.suppress(LookupError, ValueError):
            content.decode(codecs.lookup(charset).name)
            return charset
    return "latin-1"
