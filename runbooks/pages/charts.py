"""Depths over time as the coordinates of a line in a box of 1000 by 100."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

WIDTH, HEIGHT = 1000, 100
_COLUMNS = 250

Points = Sequence[tuple[float, int]]
"""(epoch seconds, messages), oldest first."""


class Chart(Struct, frozen=True):
    """The depth of a queue over time, as points of an SVG."""

    queue: str
    most: int
    """The depth at the upper edge; the lower edge is 0."""
    now: int
    from_at: float
    until_at: float
    line: str
    area: str
    dots: tuple[str, ...] = ()
    """The points that the run itself saw."""
    span: tuple[float, float] | None = None
    """The horizontal coordinates of the run's begin and end."""

    @property
    def described(self) -> str:
        """Describe the chart in words."""
        return f"Depth of {self.queue}: at most {self.most:,}, at the end {self.now:,}"


def chart(
    queue: str,
    points: Points,
    until_at: float,
    *,
    own: Points = (),
    span: tuple[float, float] | None = None,
) -> Chart | None:
    """Draw a queue from its first point to `until_at`; return None if there is no point.

    Between two looks the depth is drawn as the earlier one saw it. `own` are the points of a run,
    and `span` its begin and end.
    """
    if not points:
        return None
    from_at = points[0][0]
    end_at = max(until_at, points[-1][0])
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
    shaded = None
    if span:
        shaded = (x(max(span[0], from_at)), x(min(span[1], end_at)))
    area = f"0,{HEIGHT} {line} {x(end_at):g},{HEIGHT}"
    return Chart(queue, most, points[-1][1], from_at, end_at, line, area, dots, shaded)


def charts(depths: Mapping[str, Points], until_at: float) -> dict[str, Chart]:
    """Draw each queue that has points."""
    made = {queue: chart(queue, points, until_at) for queue, points in depths.items()}
    return {queue: one for queue, one in made.items() if one}


def _thinned(points: Points, from_at: float, until_at: float) -> Points:
    """Keep at most three points of a column: the first, the deepest, the last.

    A day has thousands of looks.
    """
    if len(points) <= 2 * _COLUMNS:
        return points
    width_s = max(until_at - from_at, 1.0) / _COLUMNS
    columns: dict[int, list[tuple[float, int]]] = {}
    for point in points:
        columns.setdefault(int((point[0] - from_at) / width_s), []).append(point)
    kept: list[tuple[float, int]] = []
    for column in columns.values():
        deepest = max(column, key=lambda point: point[1])
        kept += sorted({column[0], deepest, column[-1]})
    return kept
