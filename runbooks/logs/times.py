"""When the lines of a log file were written: the place, form and zone of the time in a line."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

HEAD_CHARS = 120
"""A time counts only if it begins within so many characters of its line."""

SAMPLE_LINES = 40
"""How many of a file's last lines with a time show the place of the time in a line."""

_HEAD_WORDS = 6
"""A time counts only if it follows at most so many words."""
_DAY_S = 86400
_CLOCK_SKEW_S = 2.0
_QUARTER_S = 900
_NEAR_S = 2 * _DAY_S
_STEP_BACK_S = 3660
"""How far times may go back from a line to the next: an hour, when the clock is set back."""

_MONTHS = {
    name: number
    for names in (
        "jan feb mar apr may jun jul aug sep oct nov dec",
        "янв фев мар апр май июн июл авг сен окт ноя дек",
        "jan feb mär apr mai jun jul aug sep okt nov dez",
    )
    for number, name in enumerate(names.split(), 1)
} | {"мая": 5}

_MONTH = r"[^\W\d_]{3,10}\.?"
_CLOCK = r":(\d\d)(?:[.,](\d{1,6})\d*)?"
_OFFSET = r"(?: ?(Z|UTC|GMT|[+-]\d\d:?\d\d))?"
_ISO = ("Ymdhi", rf"(\d{{4}}[-/.]\d\d[-/.]\d\d[ T]\d\d:\d\d){_CLOCK}{_OFFSET}")
_KINDS = (
    _ISO,
    ("dmYhi", rf"(\d\d\.\d\d\.\d{{4}},? \d\d:\d\d){_CLOCK}{_OFFSET}"),
    ("dbYhi", rf"(\d{{1,2}}[ ./-]+{_MONTH}[ ./-]\d{{4}}(?: г\.)?,?[ :]\d\d:\d\d){_CLOCK}{_OFFSET}"),
    ("bdhi", rf"({_MONTH} +\d{{1,2}} \d\d:\d\d){_CLOCK}(?: (\d{{4}}))?"),
    ("s", r"(?<![\d.])(1\d{9})()(?:(?:[.,]|(?=(?:\d{3}){1,3}(?!\d)))(\d{1,6})\d*)?(?![\d.])()"),
)
"""How a time is written: the order of its parts, and an expression whose groups are the time to the
minute, seconds, fraction and offset.

**Source:** ISO 8601, also with slashes (nginx's errors); RFC 3164 and ctime(3), which ends with the
year; nginx's and Apache's `$time_local`, Redis, RFC 5322; strftime(3) in a German and a Russian
locale; Python's `%(created)f`, which is epoch seconds, as `$msec` is; milli-, micro- and
nanoseconds since then.
"""

CANDIDATES = r"^.{0,120}([0-9]:[0-9][0-9]:[0-9][0-9]|1[0-9]{9})"
"""For `LC_ALL=C grep -E`: all lines that may contain a time."""

_PARTS = re.compile(r"\d+|[^\W\d_]{3,}")
_DASHES = str.maketrans("/.", "--")
_SEARCHED = [(order, re.compile(pattern)) for order, pattern in _KINDS]
_PLAIN = (_ISO[0], re.compile(r"\[?" + _ISO[1]))

Place = tuple[str, int, str]
Layout = tuple[str, re.Pattern[str]]


class Times:
    """The times of one file's lines.

    An ISO time at the beginning of a line, as Celery writes it, always counts. Another kind, or one
    after a few words, counts if it is in the same place in several lines, goes forward from line to
    line and ends near the file's last change. So a time inside a message does not count.

    A time without an offset is in the file's own zone, because an application may have another zone
    than its host (Django sets one). It is the zone in which the last line with a time was written
    when the file last changed; otherwise the host's. The name, and so the clock changes, are known
    only of the host's zone; another zone is a plain offset.
    """

    def __init__(self, hosts_zone: tzinfo = UTC) -> None:
        self.known = False
        """Whether there was a line whose time can be read."""
        self._zone = hosts_zone
        self._layouts: Sequence[Layout] = (_PLAIN,)
        self._latest = 0.0
        self._sample: list[str] = []

    def learn(self, lines: Iterable[str], changed_at: float) -> None:
        """Learn from lines of a file, ideally its last; it changed at `changed_at` (epoch s)."""
        self.changed(changed_at)
        self._sample += [line for line in lines if _place(line)]
        self._sample = self._sample[-SAMPLE_LINES:]
        self._learn_layout(changed_at)
        for line in reversed(self._sample):
            at = self._read_as(self._layouts, line)
            if at is not None:
                self.known = True
                own = _own(line, self._layouts)
                self._zone = _zone(at, own, changed_at, self._zone)
                return

    def _learn_layout(self, changed_at: float) -> None:
        """Learn the place of the time in the sample's lines, if it is not simply the beginning."""
        _, plain = _PLAIN
        places: Counter[Place] = Counter()
        for line in self._sample:
            if plain.match(line):
                continue
            place = _place(line)
            if place:
                places[place] += 1
        for place, count in places.most_common(3):
            layouts = (_PLAIN, _layout(place))
            if count > 1 and self._goes_forward(layouts, changed_at):
                self._layouts = layouts
                return

    def _goes_forward(self, layouts: Iterable[Layout], changed_at: float) -> bool:
        """Whether the sample's times, read in this way, go forward to about the last change."""
        times = []
        for line in self._sample:
            at = self._read_as(layouts, line)
            if at is not None:
                times.append(at)
        if not times:
            return False
        for at, later in pairwise(times):
            if later <= at - _STEP_BACK_S:
                return False
        return abs(times[-1] - changed_at) < _NEAR_S

    def _read_as(self, layouts: Iterable[Layout], line: str) -> float | None:
        return _read(line, layouts, UTC, self._latest, None)

    def changed(self, at: float) -> None:
        """Note the file's last change: a time without a year is within the year before it."""
        self._latest = (at // _DAY_S + 2) * _DAY_S

    def read(self, line: str, beside: float | None) -> float | None:
        """Epoch seconds of a line's time; None if it has none.

        In an hour that the clock shows twice it is the time nearest to `beside`, the time of a
        neighbouring line; the later one if that is None.
        """
        return _read(line, self._layouts, self._zone, self._latest, beside)


def _read(
    line: str, layouts: Iterable[Layout], zone: tzinfo, latest: float, beside: float | None
) -> float | None:
    for order, pattern in layouts:
        found = pattern.match(line)
        if not found:
            continue
        minute, second, fraction, own = found.groups()
        times = _minutes(order, minute, own, zone, latest)
        if not times:
            continue
        at = times[-1]
        if len(times) > 1 and beside is not None:
            at = min(times, key=lambda one: abs(one - beside))
        return at + int(second or 0) + float(f"0.{fraction or 0}")
    return None


@lru_cache(4096)
def _minutes(
    order: str, minute: str, own: str | None, zone: tzinfo, latest: float
) -> Sequence[float]:
    """The times (epoch seconds) that the text to the minute may mean, sorted; none for February 31.

    Neighbouring lines are mostly of the same minute, so the cache helps.
    """
    if order == "s":
        at_s = float(minute)
        if at_s > latest:
            return ()
        return (at_s,)
    try:
        at = _naive(order, minute, own, latest).replace(tzinfo=_offset(own) or zone)
    except ValueError:
        return ()
    return sorted({at.timestamp(), at.replace(fold=1).timestamp()})


def _naive(order: str, minute: str, own: str | None, latest: float) -> datetime:
    if order == _ISO[0]:
        return datetime.fromisoformat(minute.translate(_DASHES))
    parts = dict(zip(order, _PARTS.findall(minute), strict=True))
    if "m" in parts:
        month = int(parts["m"])
    else:
        month = _MONTHS.get(parts["b"][:3].lower(), 0)
    day = int(parts["d"])
    rest = f"{month:02}-{day:02}T{parts['h']}:{parts['i']}"
    written = parts.get("Y")
    if not written and own and own.isdecimal():
        written = own
    if written:
        return datetime.fromisoformat(f"{written}-{rest}")
    last = datetime.fromtimestamp(latest).isoformat()
    year = int(last[:4])
    if rest > last[5:]:
        year -= 1
    return datetime.fromisoformat(f"{year}-{rest}")


@lru_cache
def _offset(own: str | None) -> tzinfo | None:
    if not own or own.isdecimal():
        return None
    if own.isalpha():
        return UTC
    return datetime.strptime(own, "%z").tzinfo


def _place(line: str) -> Place | None:
    """The place of a line's time: its kind, the words before it, and the text just before it."""
    found = []
    for order, kind in _SEARCHED:
        match = kind.search(line, 0, 2 * HEAD_CHARS)
        if match:
            found.append((match.start(), order))
    if not found:
        return None
    start, order = min(found)
    words = line[:start].split()
    before = ""
    if start and not line[start - 1].isspace():
        before = words.pop()
    if start >= HEAD_CHARS or len(words) > _HEAD_WORDS:
        return None
    return order, len(words), before


def _layout(place: Place) -> Layout:
    order, words, before = place
    time = dict(_KINDS)[order]
    word = rf"\S{{1,{HEAD_CHARS}}}\s+"
    pattern = rf"\s*(?:{word}){{{words}}}{re.escape(before)}{time}"
    return order, re.compile(pattern)


def _own(line: str, layouts: Iterable[Layout]) -> tzinfo | None:
    """The offset that is written in a line."""
    for _, pattern in layouts:
        found = pattern.match(line)
        if found:
            return _offset(found[4])
    return None


def _zone(at: float, own: tzinfo | None, changed_at: float, hosts: tzinfo) -> tzinfo:
    """The zone of a file whose last time, read as UTC, is `at`."""
    if own is not None:
        return own
    offset_s = round((at - changed_at) / _QUARTER_S) * _QUARTER_S
    if abs(at - offset_s - changed_at) < _CLOCK_SKEW_S and abs(offset_s) < _DAY_S:
        if datetime.fromtimestamp(changed_at, hosts).utcoffset() == timedelta(seconds=offset_s):
            return hosts
        return timezone(timedelta(seconds=offset_s))
    return hosts


def hosts_zone(said: str) -> tzinfo:
    """The zone of a host by name if this machine knows the name, otherwise by its present offset.

    **Source:** localtime(5): a link to a file below `zoneinfo/`; otherwise Debian's
    `/etc/timezone`.
    """
    offset, _, name = said.partition(" ")
    try:
        return ZoneInfo(name.rpartition("zoneinfo/")[2])
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return datetime.strptime(offset, "%z").tzinfo or UTC
