"""Depths over time → the coordinates of a line in a box of 1000 by 100; the page stretches the box."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

WIDTH, HEIGHT = 1000, 100
_COLUMNS = 250

Points = Sequence[tuple[float, int]]
"""(epoch seconds, messages), oldest first."""


class Chart(Struct, frozen=True):
    """A queue's depth: `line` and `area` are SVG's points, `dots` those that a run saw itself,
    `span` when it went on.

    `most` is the depth at the upper edge; the lower edge is 0.
    """

    queue: str
    most: int
    now: int
    from_at: float
    until_at: float
    line: str
    area: str
    dots: tuple[str, ...] = ()
    span: tuple[float, float] | None = None

    @property
    def described(self) -> str:
        """The chart in words."""
        return f"Depth of {self.queue}: at most {self.most:,}, at the end {self.now:,}"


def chart(
    queue: str,
    points: Points,
    until_at: float,
    *,
    own: Points = (),
    span: tuple[float, float] | None = None,
) -> Chart | None:
    """The chart of a queue from its first point to a time, None where there is no point.

    Between two looks the depth is drawn as the earlier one saw it. `own` are the points of a run,
    and `span` its times.
    """
    if not points:
        return None
    from_at, end_at = points[0][0], max(until_at, points[-1][0])
    most = max(depth for _, depth in points)

    def x(at: float) -> float:
        return round((at - from_at) / max(end_at - from_at, 1.0) * WIDTH, 1)

    def y(depth: int) -> float:
        return round(HEIGHT - depth / max(most, 1) * HEIGHT, 1)

    corners = [(0.0, y(points[0][1]))]
    for at, depth in _thinned(points, from_at, end_at):
        corners += [(x(at), corners[-1][1]), (x(at), y(depth))]
    corners.append((x(end_at), corners[-1][1]))
    line = " ".join(f"{one:g},{other:g}" for one, other in dict.fromkeys(corners))
    dots = tuple(f"{x(at):g},{y(depth):g}" for at, depth in own if from_at <= at <= end_at)
    shaded = (x(max(span[0], from_at)), x(min(span[1], end_at))) if span else None
    area = f"0,{HEIGHT} {line} {x(end_at):g},{HEIGHT}"
    return Chart(queue, most, points[-1][1], from_at, end_at, line, area, dots, shaded)


def charts(depths: Mapping[str, Points], until_at: float) -> dict[str, Chart]:
    """The chart of each queue that was looked at."""
    made = {queue: chart(queue, points, until_at) for queue, points in depths.items()}
    return {queue: one for queue, one in made.items() if one}


def _thinned(points: Points, from_at: float, until_at: float) -> Points:
    """At most three points in a column: its first, its deepest and its last: a day has thousands of
    looks.
    """
    if len(points) <= 2 * _COLUMNS:
        return points
    width_s = max(until_at - from_at, 1.0) / _COLUMNS
    columns: dict[int, list[tuple[float, int]]] = {}
    for point in points:
        columns.setdefault(int((point[0] - from_at) / width_s), []).append(point)
    kept = [
        {column[0], max(column, key=lambda one: one[1]), column[-1]} for column in columns.values()
    ]
    return [point for column in kept for point in sorted(column)]
